"""Flags in one line, as in a shell: what a pipeline says to a component."""

from __future__ import annotations

import shlex
from typing import Any

from sela_tf.cli import flags, recipes
from sela_tf.cli.command import Command


def arguments(command: Command, line: str, **directories: str) -> tuple[Any, ...]:
    """Returns what a command would do its work with: instances of its settings.

    Args:
        command: The command.
        line: Its flags in one line, as in a shell.
        directories: Paths of its artifacts, by the names of their settings; empty ones are left out.

    Raises:
        ConfigError: A flag is unknown, or a value cannot be used.
    """
    values = command.make_flags()
    argv = [command.name, *shlex.split(line), *(f"--{name}={path}" for name, path in directories.items() if path)]
    flags.parse(values, recipes.with_flagfiles(argv)[0] if recipes.FLAG in values else argv)
    return command.read_settings(values)
