"""Artifacts: directories that a component writes. Each holds a fingerprint of its inputs, so that unchanged work is not repeated."""

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
"""The file with the fingerprint and the inputs. It is written last, so an artifact that has it is complete."""
_STARTED = ".started-{}"
"""The empty file that marks an unfinished artifact as a component's own."""


def fingerprint(made_of: Mapping[str, Any]) -> str:
    """Returns the SHA-256 digest of an artifact's inputs and the version of sela_tf, 64 hexadecimal digits."""
    text = json.dumps({"sela_tf": __version__, **made_of}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_made_of(directory: str) -> dict[str, Any] | None:
    """Returns the inputs and the fingerprint that `finish` wrote; None if the artifact does not exist or is not complete."""
    try:
        with tf.io.gfile.GFile(f"{directory}/{MADE_OF}", "r") as file:
            found = json.loads(file.read())
    except (tf.errors.OpError, ValueError):
        return None
    return found if isinstance(found, dict) and "fingerprint" in found else None


def is_current(directory: str, made_of: Mapping[str, Any]) -> bool:
    """Returns True if the directory holds the complete artifact of the same inputs."""
    found = read_made_of(directory)
    return found is not None and found["fingerprint"] == fingerprint(made_of)


def refuse_foreign(directory: str, setting: str, component: str) -> None:
    """Checks that a directory is free for an artifact: new, empty, or written by the same component.

    Args:
        directory: The directory or URL.
        setting: The setting that names it, for messages.
        component: The name of the component.

    Raises:
        ConfigError: The directory holds other files, or is a file.
    """
    if not tf.io.gfile.exists(directory):
        return
    if not tf.io.gfile.isdir(directory):
        raise ConfigError(f"`{setting}={directory}` is a file: name a directory")
    found = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))
    mark = _STARTED.format(component)
    made_of = read_made_of(directory)
    if found and mark not in found and (made_of is None or made_of.get("component") != component):
        raise ConfigError(f"`{setting}={directory}` holds other files ({', '.join(found[:3])}): name a new or an empty directory")


def refuse_other(directory: str, setting: str, made_of: Mapping[str, Any]) -> None:
    """Checks that a directory is free for the artifact of these inputs. An artifact of other inputs is not overwritten.

    Args:
        directory: The directory or URL.
        setting: The setting that names it, for messages.
        made_of: The inputs.

    Raises:
        ConfigError: The directory holds an artifact of other inputs, or other files, or is a file.
    """
    refuse_foreign(directory, setting, made_of["component"])
    found = read_made_of(directory)
    if found is not None and found["fingerprint"] != fingerprint(made_of):
        raise ConfigError(f"`{setting}={directory}` holds what was made of other examples or settings: name another directory")


def start(directory: str, setting: str, component: str, *, clear: tuple[str, ...] = ()) -> None:
    """Makes the directory, marks it as the component's own, and removes the fingerprint of an earlier artifact.

    Args:
        directory: The directory or URL.
        setting: The setting that names it, for messages.
        component: The name of the component.
        clear: Beginnings of the names of old files and directories to remove.

    Raises:
        ConfigError: The directory holds other files, or cannot be written.
    """
    refuse_foreign(directory, setting, component)
    try:
        tf.io.gfile.makedirs(directory)
        with tf.io.gfile.GFile(f"{directory}/{_STARTED.format(component)}", "w") as file:
            file.write("")
        for name in tf.io.gfile.listdir(directory):
            path = f"{directory}/{name.rstrip('/')}"
            if name.startswith((MADE_OF, *clear)):
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)
    except tf.errors.OpError as error:
        raise ConfigError(f"`{setting}={directory}` cannot be written: {error.message.rpartition('; ')[2]}") from error


def finish(directory: str, made_of: Mapping[str, Any]) -> None:
    """Completes an artifact that was started: writes its inputs and their fingerprint."""
    write_made_of(directory, made_of)
    tf.io.gfile.remove(f"{directory}/{_STARTED.format(made_of['component'])}")


def write_made_of(directory: str, made_of: Mapping[str, Any]) -> None:
    """Writes the inputs of an artifact and their fingerprint."""
    with whole_remote_file(f"{directory}/{MADE_OF}") as unfinished, tf.io.gfile.GFile(unfinished, "w") as file:
        file.write(json.dumps({"fingerprint": fingerprint(made_of), **made_of}, indent=1) + "\n")
