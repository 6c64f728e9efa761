"""The state of a run on disk: one directory a save, there whole or not at all.

checkpoints/step-00000234/state.npz      arrays by name: "model/0007", "optimizer/0003", "table/labels", …
checkpoints/step-00000234/meta.json      step, digest of state.npz, whatever else the trainer gives, and the digest of all this

A second save of a step is step-00000234.1, so that the first one lies there until the second is whole.
"""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sela_tf.files.archives import read_npz, write_npz
from sela_tf.files.atomic import whole_directory
from sela_tf.files.digests import digest_of_file, digest_of_json
from sela_tf.files.json_objects import json_object

_PREFIX, _UNFINISHED = "step-", ".unfinished-"
_NAME = re.compile(_PREFIX + r"(\d{8,})(?:\.(\d+))?")
_STATE, _META, _DIGEST = "state.npz", "meta.json", "meta_sha256"


class Checkpoint(NamedTuple):
    """A save that was read back and found whole."""

    step: int
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def save(directory: pathlib.Path, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, keep: int) -> None:
    """Writes a save beside the others, then removes all but the `keep` newest, and any of later steps, which will be taken again.

    The directory appears under its final name by one rename, after its files have reached the disk.

    Args:
        directory: the directory of the saves.
        step: the number of steps that were taken.
        arrays: the state.
        meta: values that JSON can hold.
        keep: the number of saves to keep, at least 1.

    Raises:
        OSError: the save cannot be written (StorageError: the disk is full, or read-only); the earlier ones are as they were.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(directory)
    saves = _saves(directory)
    number = max((each.number + 1 for each in saves if each.step == step), default=0)
    name = f"{_PREFIX}{step:08d}" + (f".{number}" if number else "")
    with whole_directory(directory / name, unfinished=directory / (_UNFINISHED + name)) as unfinished:
        write_npz(unfinished / _STATE, arrays)
        described = {**meta, "step": step, "sha256": digest_of_file(unfinished / _STATE)}
        (unfinished / _META).write_text(json.dumps({**described, _DIGEST: digest_of_json(described)}, indent=1) + "\n")
    for each in saves:
        if each.step > step:
            shutil.rmtree(each.path)
    prune(directory, step, keep=keep)


def prune(directory: pathlib.Path, step: int, *, keep: int) -> None:
    """Removes what a process left that was stopped in a save: unfinished directories, and all but the `keep` newest saves up to `step`."""
    _remove_unfinished(directory)
    for each in [each for each in _saves(directory) if each.step <= step][:-keep]:
        shutil.rmtree(each.path)


def _remove_unfinished(directory: pathlib.Path) -> None:
    for leftover in directory.glob(_UNFINISHED + "*"):
        shutil.rmtree(leftover)


def load_newest(directory: pathlib.Path, *, before: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest whole save, or None where there is none, and a line for each damaged one that was passed over.

    Args:
        directory: the directory of the saves.
        before: only saves of fewer steps than this; None for all.
    """
    passed_over: list[str] = []
    for each in reversed(_saves(directory)):
        if before is not None and each.step >= before:
            continue
        try:
            meta = _read_meta(each)
            if digest_of_file(each.path / _STATE) != meta["sha256"]:
                raise ValueError(f"its {_STATE} is not the one that was written")
            return Checkpoint(meta["step"], read_npz(each.path / _STATE), meta), passed_over
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            passed_over.append(f"{each.path.name} is damaged ({error})")
    return None, passed_over


def newest_meta(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns meta.json of the newest save that has a whole one, without a look at the arrays; None where there is none."""
    for each in reversed(_saves(directory)):
        try:
            return _read_meta(each)
        except (OSError, ValueError):
            continue
    return None


def _read_meta(save: _Save) -> dict[str, Any]:
    """Returns meta.json of a save.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not the one that was written.
    """
    meta = json_object((save.path / _META).read_bytes())
    if not isinstance(meta.get("sha256"), str):
        raise ValueError(f"its {_META} is not the one that was written")
    digest = meta.pop(_DIGEST, None)
    # Saves that were made before meta.json had a digest of itself have no settings either.
    whole = digest == digest_of_json(meta) if digest is not None else "settings" not in meta
    if not whole or meta.get("step") != save.step:
        raise ValueError(f"its {_META} is not the one that was written")
    return meta


def arrays_under(place: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays named place/NAME, by NAME."""
    return {name.removeprefix(f"{place}/"): value for name, value in arrays.items() if name.startswith(f"{place}/")}


class _Save(NamedTuple):
    """The directory of a save, by its name."""

    step: int
    number: int
    """The number among the saves of this step, from 0."""
    path: pathlib.Path


def _saves(directory: pathlib.Path) -> list[_Save]:
    """Returns the saves in the order of their steps; other files and directories are ignored."""
    named = ((_NAME.fullmatch(path.name), path) for path in directory.glob(_PREFIX + "*") if path.is_dir())
    return sorted(_Save(int(name[1]), int(name[2] or 0), path) for name, path in named if name)
