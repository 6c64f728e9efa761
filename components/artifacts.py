"""What a component leaves behind knows what it was made of, so that unchanged work is not done twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from sela_tf import __version__
from sela_tf.files.remote import whole_remote_file
from sela_tf.settings.fields import ConfigError

MADE_OF = "made_of.json"
"""Written last: a directory that has it is complete."""
_STARTED = ".started-{}"


def fingerprint(made_of: Mapping[str, Any]) -> str:
    """Of everything that a result hangs on, the version of sela_tf included."""
    text = json.dumps({"sela_tf": __version__, **made_of}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_made_of(directory: str) -> dict[str, Any] | None:
    """What `finish` wrote; None where there is nothing, or nothing whole."""
    try:
        with tf.io.gfile.GFile(f"{directory}/{MADE_OF}", "r") as file:
            found = json.loads(file.read())
    except (tf.errors.OpError, ValueError):
        return None
    return found if isinstance(found, dict) and "fingerprint" in found else None


def is_current(directory: str, made_of: Mapping[str, Any]) -> bool:
    """Whether the directory holds what the same component would make of the same."""
    found = read_made_of(directory)
    return found is not None and found["fingerprint"] == fingerprint(made_of)


def refuse_foreign(directory: str, flag: str, component: str) -> None:
    """Raises:
    ConfigError: the directory holds what this component has not left there, or is a file.
    """
    if not tf.io.gfile.exists(directory):
        return
    if not tf.io.gfile.isdir(directory):
        raise ConfigError(f"--{flag}={directory} is a file: name a directory")
    found = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))
    mark = _STARTED.format(component)
    made_of = read_made_of(directory)
    if found and mark not in found and (made_of is None or made_of.get("component") != component):
        raise ConfigError(f"--{flag}={directory} holds other files ({', '.join(found[:3])}): name a new or an empty directory")


def refuse_other(directory: str, flag: str, made_of: Mapping[str, Any]) -> None:
    """Raises:
    ConfigError: the directory holds what this component made of something else, which is not to be written over.
    """
    refuse_foreign(directory, flag, made_of["component"])
    found = read_made_of(directory)
    if found is not None and found["fingerprint"] != fingerprint(made_of):
        raise ConfigError(f"--{flag}={directory} holds what was made of other examples or settings: name another directory")


def start(directory: str, flag: str, component: str, *, clear: tuple[str, ...] = ()) -> None:
    """Makes the directory a component's own, and no longer complete; what begins with a word of `clear` is removed.

    Raises:
        ConfigError: it holds something else, or cannot be written.
    """
    refuse_foreign(directory, flag, component)
    try:
        tf.io.gfile.makedirs(directory)
        with tf.io.gfile.GFile(f"{directory}/{_STARTED.format(component)}", "w") as file:
            file.write("")
        for name in tf.io.gfile.listdir(directory):
            path = f"{directory}/{name.rstrip('/')}"
            if name.startswith((MADE_OF, *clear)):
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)
    except tf.errors.OpError as error:
        raise ConfigError(f"--{flag}={directory} cannot be written: {error.message.rpartition('; ')[2]}") from error


def finish(directory: str, made_of: Mapping[str, Any]) -> None:
    """Says that `directory` is complete, and what it was made of."""
    with whole_remote_file(f"{directory}/{MADE_OF}") as unfinished, tf.io.gfile.GFile(unfinished, "w") as file:
        file.write(json.dumps({"fingerprint": fingerprint(made_of), **made_of}, indent=1) + "\n")
    tf.io.gfile.remove(f"{directory}/{_STARTED.format(made_of['component'])}")
