"""The state of a run on disk: one directory a save, there whole or not at all.

checkpoints/step-00000234/state.npz      arrays by name: "model/0007", "optimizer/0003", "table/labels", …
checkpoints/step-00000234/meta.json      step, digest of state.npz, and whatever else the trainer gives
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sela_tf.files.archives import write_npz
from sela_tf.files.atomic import whole_directory

_PREFIX, _UNFINISHED = "step-", ".unfinished-"


class Checkpoint(NamedTuple):
    """A save that was read back and found whole."""

    step: int
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def save(directory: pathlib.Path, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, keep: int) -> None:
    """Writes a save beside the others, then removes all but the `keep` newest, and any of later steps, which will be taken again.

    The directory appears under its final name by one rename, after its files have reached the disk.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(_UNFINISHED + "*"):
        shutil.rmtree(leftover)
    name = f"{_PREFIX}{step:08d}"
    with whole_directory(directory / name, unfinished=directory / (_UNFINISHED + name)) as unfinished:
        write_npz(unfinished / "state.npz", arrays)
        digest = hashlib.sha256((unfinished / "state.npz").read_bytes()).hexdigest()
        (unfinished / "meta.json").write_text(json.dumps({**meta, "step": step, "sha256": digest}, indent=1) + "\n")
        for file in (unfinished / "state.npz", unfinished / "meta.json", unfinished):
            _to_disk(file)
        if (directory / name).exists():
            shutil.rmtree(directory / name)
    _to_disk(directory)
    saves = _saves(directory)
    for path in [path for path in saves if path.name > name] + [path for path in saves if path.name <= name][:-keep]:
        shutil.rmtree(path)


def load_newest(directory: pathlib.Path) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest whole save, or None where there is none, and a line for each damaged one that was passed over."""
    passed_over: list[str] = []
    for path in reversed(_saves(directory)):
        try:
            meta = json.loads((path / "meta.json").read_text())
            data = (path / "state.npz").read_bytes()
            if hashlib.sha256(data).hexdigest() != meta["sha256"]:
                raise ValueError("its state.npz is not the one that was written")
            with np.load(path / "state.npz", allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            return Checkpoint(int(meta["step"]), arrays, meta), passed_over
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            passed_over.append(f"{path.name} is damaged ({error})")
    return None, passed_over


def arrays_under(place: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays named place/NAME, by NAME."""
    return {name.removeprefix(f"{place}/"): value for name, value in arrays.items() if name.startswith(f"{place}/")}


def _saves(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the directories of the saves in the order of their steps; other files and directories are ignored."""
    return sorted(path for path in directory.glob(_PREFIX + "*") if re.fullmatch(_PREFIX + r"\d{8,}", path.name) and path.is_dir())


def _to_disk(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
