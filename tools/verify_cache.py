"""``python tools/verify_cache.py``: find files of DVC's cache whose bytes are no longer what their name says.

DVC takes a read-only file of its cache for whole. Where the cache is linked into the workspace, root (and so everybody
in a container) can write through the link all the same: the damage is then checked out and pushed as if it were data.
"""

import sys
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.hash import file_md5
from dvc_objects.fs import localfs

from sightline.core.errors import UserError


def damaged_files(cache: Path) -> list[Path]:
    """Files of the cache folder ``cache`` (``.dvc/cache/files/md5``) whose MD5 is not their name, sorted."""
    files = sorted(path for path in cache.glob("[0-9a-f][0-9a-f]/*") if not path.name.endswith(".tmp"))
    return [path for path in files if file_md5(str(path), localfs) != path.parent.name + path.name.removesuffix(".dir")]


def verify_cache() -> int:
    """Remove damaged files from the cache around the working directory and their links; return how many are whole.

    Raises:
        UserError: some were damaged, with the outputs concerned and how to get them back; or this is no DVC project.
    """
    try:
        repo = Repo()
    except DvcException as error:
        raise UserError(str(error)) from None
    cache = Path(repo.cache.local.path)
    damaged = damaged_files(cache)
    if not damaged:
        return sum(1 for _ in cache.glob("[0-9a-f][0-9a-f]/*"))
    names = _outputs_of({path.parent.name + path.name for path in damaged}, repo)
    places = {_place(path) for path in damaged}
    for out in map(Path, names):  # DVC remembers their links in the workspace as whole
        for file in [out, *out.rglob("*")]:
            if file.exists() and _place(file) in places:
                file.unlink()
    for path in damaged:
        path.unlink()
    again = f"dvc pull --force {' '.join(sorted(names))}" if names else "nothing of this commit needs them"
    raise UserError(f"{cache}: {len(damaged)} files were changed after DVC had saved them; removed; now: {again}")


def _place(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _outputs_of(hashes: set[str], repo: Repo) -> set[str]:
    """Paths of the outputs that have one of ``hashes``, or a file with one in them."""
    names = set()
    for out in repo.index.outs:
        if not out.hash_info:
            continue
        contained = {out.hash_info.value}
        if out.is_dir_checksum and out.hash_info.value not in hashes and repo.cache.local.exists(out.hash_info.value):
            contained |= {info.value for _, _, info in out.get_obj() or ()}
        if contained & hashes:
            names.add(str(out))
    return names


if __name__ == "__main__":
    try:
        print(f"{verify_cache()} files in the cache, all whole")
    except UserError as error:
        print(f"verify_cache: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
