"""Disks that are full: a small tmpfs where the tests may mount one, else a limit of the size of files.

As a module it is a command of `fixtures.run_modules`: disks fill|empty|list DIR
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import Iterator

_FILLER = "filler"
_LEFT = 2048
"""Bytes that a file may have where no disk can be mounted: enough for the words of a lock."""


@contextlib.contextmanager
def small_disk(directory: pathlib.Path, kilobytes: int) -> Iterator[pathlib.Path]:
    """Yields an empty directory, on a disk of its own where that can be had."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(directory)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield directory
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: pathlib.Path) -> None:
    """Fills the disk of a `small_disk`, but for a page of memory, so that a lock can still be written; nothing larger than that can."""
    if not os.path.ismount(directory):
        _limit_files(_LEFT)
        return
    page = os.sysconf("SC_PAGE_SIZE")
    with (directory / _FILLER).open("wb", buffering=0) as filler:
        with contextlib.suppress(OSError):
            while True:
                filler.write(bytes(page))
        filler.truncate(filler.tell() // page * page - page)


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def empty(directory: pathlib.Path) -> None:
    """Makes the room that `fill` took."""
    _limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    (directory / _FILLER).unlink(missing_ok=True)


@contextlib.contextmanager
def full(directory: pathlib.Path) -> Iterator[None]:
    """Keeps the disk of a `small_disk` full for this process."""
    fill(directory)
    try:
        yield
    finally:
        empty(directory)


def main(argv: list[str]) -> int:
    _, what, directory = argv
    {"fill": fill, "empty": empty, "list": _list}[what](pathlib.Path(directory))
    return 0


def _list(directory: pathlib.Path) -> None:
    print("\n".join(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
