"""The list of licences is whole."""

import importlib.util

from conftest import ROOT

spec = importlib.util.spec_from_file_location("licences", ROOT / "docs/licences.py")
licences = importlib.util.module_from_spec(spec)
spec.loader.exec_module(licences)


def test_every_requirement_and_what_it_needs_is_listed_with_its_licence():
    page = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    assert page.startswith(licences.HEAD)
    listed = dict(row.strip("| ").split(" | ")[:2] for row in page.removeprefix(licences.HEAD).splitlines())
    assert set(licences.direct()) <= set(listed)
    missing = [name for name in licences.needed() if name not in listed]
    assert not missing, "run make licences"
    assert {name for name, text in listed.items() if text == licences.UNKNOWN} <= {"cuda-toolkit"}  # an empty package
    wrong = [name for name in licences.direct() if licences.licence(name).replace("|", "/") != listed[name]]
    assert not wrong, "run make licences"
