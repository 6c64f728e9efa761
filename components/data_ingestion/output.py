"""The output of an ingestion: made in a scratch directory beside it, by one process at a time, and put in place as a whole."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from components import artifacts
from sela_tf.data.folder_contents import walk
from sela_tf.files.locks import HeldError, held
from sela_tf.settings.fields import ConfigError

_SCRATCH = ".unfinished-"
_OLD = "old"
"""The name, in the scratch directory, of the old output while the new one takes its place."""


@contextlib.contextmanager
def scratch_beside(directory: str) -> Iterator[str]:
    """Makes a scratch directory beside the output, without what a killed ingestion has left there, and removes it at the end of the context.

    Only one process on a machine has it at a time. At a URL nothing can be locked.

    Args:
        directory: The output, an absolute path or a URL.

    Raises:
        ConfigError: Another ingestion is writing the output.
    """
    place, _, name = directory.rpartition("/")
    path = f"{place}/{_SCRATCH}{name}"
    with contextlib.ExitStack() as stack:
        if "://" not in directory:
            os.makedirs(place, exist_ok=True)
            try:
                stack.enter_context(held(pathlib.Path(place, f".lock-{name}")))
            except HeldError as error:
                raise ConfigError(
                    f"`examples={directory}` is being written by {error.holder}: wait for its end, or name another directory"
                ) from error
            if os.path.isdir(f"{path}/{_OLD}") and not os.path.exists(directory):
                # It was killed between two renamings.
                os.rename(f"{path}/{_OLD}", directory)
        for left in tf.io.gfile.listdir(path) if tf.io.gfile.exists(path) else ():
            _remove(f"{path}/{left.rstrip('/')}")
        tf.io.gfile.makedirs(path)
        try:
            yield path
        finally:
            tf.io.gfile.rmtree(path)


def put_in_place(scratch: str, staging: str, directory: str, made_of: Mapping[str, Any], *, names: tuple[str, ...]) -> None:
    """Moves a finished artifact to its place, instead of what was there before.

    It appears as a whole, by one renaming, unless the file system cannot do that (a bucket) or somebody has put files of his own into the
    directory: then file by file, and the fingerprint last.

    Args:
        scratch: The scratch directory. The old files are there meanwhile.
        staging: The directory of the new files.
        directory: Their place.
        made_of: The inputs, see `artifacts.finish`.
        names: Beginnings of the names of an ingestion's files and directories.
    """
    artifacts.write_made_of(staging, made_of)
    if "://" not in directory and _renamed(staging, directory, f"{scratch}/{_OLD}", names):
        return
    component = made_of["component"]
    artifacts.start(directory, "examples", component, clear=names)
    for name in walk(staging, name=staging):
        if name != artifacts.MADE_OF:
            tf.io.gfile.makedirs(os.path.dirname(f"{directory}/{name}"))
            tf.io.gfile.rename(f"{staging}/{name}", f"{directory}/{name}", overwrite=True)
    artifacts.finish(directory, made_of)


def _renamed(staging: str, directory: str, aside: str, names: tuple[str, ...]) -> bool:
    """Puts one directory in the place of another; returns False if that cannot be done, and all is as before."""
    found = os.listdir(directory) if os.path.isdir(directory) else []
    # An artifact that was not finished file by file is finished so.
    if os.path.islink(directory) or not all(name.startswith((*names, artifacts.MADE_OF)) for name in found):
        return False
    try:
        if found:
            os.rename(directory, aside)
    except OSError:  # a volume of its own, or a mounted bucket
        return False
    try:
        os.rename(staging, directory)
    except OSError:
        if found:
            os.rename(aside, directory)
        return False
    return True


def _remove(path: str) -> None:
    """Removes a file, or a directory with all that is in it."""
    (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)
