"""The beginning of a run on several workers: what the chief tells the others, and what all of them have to agree on."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from typing import Any, NamedTuple

import numpy as np

from sela_tf import __version__
from sela_tf.compat.releases import RELEASE
from sela_tf.files.archives import write_npz
from sela_tf.files.saves import Checkpoint
from sela_tf.settings.fields import CHOSEN, ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.transport.shards import Shards

# Float64 holds whole numbers of this many bytes exactly.
_BYTES_OF_NUMBER = 6
_BYTES_AT_ONCE = _BYTES_OF_NUMBER * 2**21


class Start(NamedTuple):
    """The settings and the state that a run starts with, as the chief knows them from its directory."""

    config: SelaConfig
    """The settings; those that are None are chosen from the images."""
    saved: Checkpoint | None = None
    """The checkpoint that it goes on from; None for a run that begins."""
    minutes: float = 0.0
    """The time by which the epochs of a new run are chosen; 0 for no limit."""
    is_done: bool = False
    """True if there are no steps to take, and no labels to make."""


def start_together(shards: Shards, start: Start | None, *, own: SelaConfig | None = None) -> Start:
    """Returns the chief's start, on every worker.

    Args:
        shards: the workers.
        start: that of the chief; None on the others.
        own: the settings that another worker than the chief was given.

    Raises:
        ConfigError: a worker has other versions or other settings than the chief. It is raised by all.
    """
    if shards.count == 1 and start is not None:
        return start
    config = own if start is None else start.config
    check_same(shards, "version", {"sela_tf": __version__, "tensorflow": RELEASE, "python": sys.version.split()[0]})
    given = {} if config is None else {name: value for name, value in dataclasses.asdict(config).items() if value is not CHOSEN}
    # Where the chief goes on with a run, it has values for settings that nobody gave.
    check_same(shards, "command", given, only_both=True)
    told = b""
    if start is not None:
        file, saved = io.BytesIO(), start.saved
        write_npz(file, {} if saved is None else {f"arrays/{name}": value for name, value in saved.arrays.items()})
        about = {
            "settings": dataclasses.asdict(start.config),
            "minutes": start.minutes,
            "is_done": start.is_done,
            "saved": None if saved is None else {"step": saved.step, "meta": saved.meta},
        }
        head = json.dumps(about).encode()
        told = len(head).to_bytes(8, "little") + head + file.getvalue()
    told = _bytes_of_first(shards, told)
    if start is not None:
        return start
    size = int.from_bytes(told[:8], "little")
    about, saved = json.loads(told[8 : 8 + size]), None
    if about["saved"] is not None:
        with np.load(io.BytesIO(told[8 + size :]), allow_pickle=False) as arrays:
            saved = Checkpoint(arrays={name.removeprefix("arrays/"): arrays[name] for name in arrays}, **about["saved"])
    return Start(SelaConfig(**about["settings"]), saved, about["minutes"], about["is_done"])


def _bytes_of_first(shards: Shards, told: bytes) -> bytes:
    """Returns the bytes of the first worker; those of the others are not looked at."""
    size, found = int(shards.of_first(np.array([len(told)], np.float64))[0]), []
    for start in range(0, size, _BYTES_AT_ONCE):
        count = min(_BYTES_AT_ONCE, size - start)
        part = np.zeros((-(-count // _BYTES_OF_NUMBER), 8), np.uint8)
        if shards.index == 0:
            own = np.frombuffer(told[start : start + count].ljust(len(part) * _BYTES_OF_NUMBER, b"\0"), np.uint8)
            part[:, :_BYTES_OF_NUMBER] = own.reshape(-1, _BYTES_OF_NUMBER)
        numbers = shards.of_first(part.view("<i8")[:, 0].astype(np.float64))
        whole = numbers.astype("<i8")[:, np.newaxis].view(np.uint8)[:, :_BYTES_OF_NUMBER]
        found.append(whole.tobytes()[:count])
    return b"".join(found)


def check_same(shards: Shards, what: str, facts: dict[str, Any], *, only_both: bool = False) -> None:
    """Checks that all workers have the same facts.

    Args:
        shards: the workers.
        what: what the facts are about, for the message.
        facts: the facts by name, as JSON has them.
        only_both: True to compare only facts that both have.

    Raises:
        ConfigError: they have not; with what differs first. It is raised by all.
    """
    if shards.count == 1:
        return
    own, *others = [json.loads(text) for text in shards.texts(json.dumps(facts))]
    for number, theirs in enumerate(others, 1):
        for name in sorted({*own} & {*theirs} if only_both else {*own, *theirs}):
            one, other = own.get(name), theirs.get(name)
            if one != other:
                raise ConfigError(
                    f"worker {number} has another {what} than worker 0: `{name}` is {_shown(other)} there and {_shown(one)} here: start all "
                    "workers with the same command, images and versions"
                )


def _shown(value: Any) -> str:
    """Returns a value for a message."""
    text = json.dumps(value)
    return text if len(text) < 120 else f"{text[:100]}…"
