"""Copies of a directory as a killed process would leave it: before and after each write, fsync, rename and removal."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import pytest

_CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


def digests(directory: pathlib.Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """The sha256 of each file below a directory, by its path; those below a name of `leave_out` are left out."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    found = {str(path.relative_to(directory)): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items() if name.split("/")[0] not in leave_out
    }


def final_digests(workdir: pathlib.Path) -> dict[str, str]:
    """The digests of the files of a run, without those that tell of the machine and its clock, and of the newest checkpoint alone: earlier
    ones are of the moments at which the run was stopped."""
    found = digests(workdir, leave_out=("tensorboard", "timings.jsonl", ".lock"))
    newest = max(path.name for path in (workdir / "checkpoints").iterdir())
    return {name: digest for name, digest in found.items() if not name.startswith("checkpoints/") or newest in name}


def differences(found: dict[str, str], other: dict[str, str]) -> set[str]:
    """The names of the files that are not the same in both."""
    return {name for name in {*found, *other} if found.get(name) != other.get(name)}


@contextlib.contextmanager
def crash_points(directory: pathlib.Path, copies: pathlib.Path) -> Iterator[list[pathlib.Path]]:
    """Copies a directory whenever what a killed process would leave of it has changed, before and after each call that orders its files.

    A file that is being written is copied before its fsync as a whole, and cut in the middle.
    """
    found: list[pathlib.Path] = []
    last: list[dict[str, str]] = [{}]

    def copy(cut: pathlib.Path | None = None) -> None:
        present = digests(directory, leave_out=("tensorboard", ".lock"))
        if present == last[0] and cut is None:
            return
        place = copies / f"{len(found):03d}"
        shutil.copytree(directory, place)
        found.append(place)
        if cut is None:
            last[0] = present
        else:
            half = place / cut.relative_to(directory)
            half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])

    def watched(name: str, call: Callable) -> Callable:
        def act(*arguments, **options):
            inside = isinstance(arguments[0], int) or str(directory) in os.path.abspath(os.fspath(arguments[0]))
            if inside and directory.exists():
                if name == "fsync":
                    written = pathlib.Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
                    if written.is_file() and ".unfinished" in str(written) and written.stat().st_size > 1:
                        copy(written)
                copy()
            done = call(*arguments, **options)
            if inside and directory.exists():
                copy()
            return done

        return act

    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield found
