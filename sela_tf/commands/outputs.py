"""The outputs of commands: of two commands that would write the same one, the second is refused."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from sela_tf.files.locks import HeldError, sole_writer
from sela_tf.settings.fields import ConfigError


@contextlib.contextmanager
def only_writer(setting: str, path: pathlib.Path, *others: pathlib.Path) -> Iterator[None]:
    """Holds the right to write the file or directory `path`, from before the work until its end (see `files.locks.sole_writer`).

    Args:
        setting: the setting that names it, for the message.
        path: the file or directory, in a directory that exists.
        others: more that is written with it.

    Raises:
        ConfigError: another command is writing it.
        StorageError: the disk is full, or cannot be written for another reason.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(sole_writer(path, *others))
        except HeldError as error:
            raise ConfigError(f"{error}: wait for its end, or name another `{setting}`") from error
        yield
