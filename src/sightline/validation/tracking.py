"""What DVC tracks in the project of the working directory."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sightline.core.errors import UserError


def tracked() -> dict[Path, str | None]:
    """Files and folders that DVC has or makes -> the stage that makes them, None where it is a ``.dvc`` file.

    Empty outside a project. Find a path in it by its `place`. Raises `UserError` where DVC cannot read the project.
    """
    from dvc.exceptions import NotDvcRepoError

    try:
        with _project() as repo:
            outs = [(out, stage) for stage in repo.index.stages for out in stage.outs if out.protocol == "local"]
            return {place(Path(out.fs_path)): None if stage.is_data_source else stage.addressing for out, stage in outs}
    except NotDvcRepoError:
        return {}


def track(paths: Sequence[Path]) -> None:
    """``dvc add``: each file or folder by itself. Raises `UserError` where DVC refuses."""
    print(f"dvc add {' '.join(map(str, paths))}", file=sys.stderr)  # of many images it takes minutes
    with _project() as repo:
        repo.add([str(path) for path in paths])


def place(path: Path) -> Path:
    """Its absolute path, through links to folders, but not through itself: DVC may link it to its cache."""
    return path.parent.resolve() / path.name


@contextmanager
def _project() -> Iterator[Any]:
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            yield repo
    except NotDvcRepoError:
        raise
    except DvcException as error:
        raise UserError(f"dvc: {' '.join(str(error).split())}; mend this, then run it again") from None
