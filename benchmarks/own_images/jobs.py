"""The rows that are wanted: a set, a method, settings, a seed; and the file that holds those that are made."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

METHODS = ("sela", "untrained", "raw", "histogram", "simclr")

Row = dict[str, Any]
"""A row of the results: what `Job.identity` says, and what `worker.make_row` adds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A row to be made."""

    set: str
    method: str
    name: str
    """The name of the settings that are tried."""
    seed: int
    flags: list[str]
    """The settings, as flags of sela_tf.train."""
    workdir: str
    """The directory of the run."""
    variant: str = ""
    """A key of `variants.VARIANTS`: another way to train."""
    minutes: float = 0.0
    """Processor minutes that the training of sela is fitted to; 0 for the settings' own epochs."""
    cpu_seconds: float = 0.0
    """The processor time of the run, which SimCLR gets, too."""

    def identity(self) -> dict[str, Any]:
        """Returns what tells the rows of a file apart."""
        return {key: getattr(self, key) for key in ("set", "method", "name", "seed")}


def tried_flags(text: str) -> list[str]:
    """Returns the flags that "num_clusters=64,lr_drops=0.5,0.8" stands for: a comma begins a setting where a name and "=" follow."""
    return [f"--{each}" for each in re.split(r",(?=\w+=)", text) if each]


def read_rows(file: pathlib.Path) -> list[Row]:
    """Returns the rows of a results file, which may be missing."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def found(rows: list[Row], **identity: Any) -> Row | None:
    """Returns the row of this set, method, name and seed, if there is one."""
    return next((row for row in rows if all(row[key] == value for key, value in identity.items())), None)
