"""Every mistake of the table is one clear error that changes nothing, and the table says what the commands say."""

import pytest
from bad_input import CASES, HEAD, PAGE, answer

NAMES = [f"{case.command}: {case.file}: {case.wrong}" for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_mistake_is_answered_as_the_table_says(case, world, tmp_path):
    row = case.row(answer(case, world, tmp_path / "w"))
    assert row in PAGE.read_text(encoding="utf-8").splitlines(), f"run python tests/faults/bad_input.py: {row}"


def test_the_table_has_no_other_rows_and_every_mistake_has_its_own():
    page = PAGE.read_text(encoding="utf-8")
    assert page.startswith(HEAD)
    rows = page.removeprefix(HEAD).splitlines()
    assert [row.split(" | ")[:3] for row in rows] == [
        [f"| {case.command}", f"`{case.file}`", case.wrong] for case in CASES
    ]
    assert len(set(NAMES)) == len(CASES) >= 60
