"""The wording of errors on the command line: settings as flags, on one line."""

from __future__ import annotations

import re
from collections.abc import Container

_SETTING = re.compile(r"`(?P<name>\w+)(?:=(?P<value>[^`]*))?`")


def in_flags(message: str, flags: Container[str]) -> str:
    """Returns a message of the library with its settings written as flags of the command.

    The library knows no flags: its messages name a setting in backticks, as Keras' do. `num_heads` becomes --num_heads, `num_heads=2`
    becomes --num_heads=2, `report=False` becomes --noreport. Other words in backticks stay as they are.

    Args:
        message: the text of an exception.
        flags: the names of the command's flags.
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        if name not in flags:
            return found[0]
        if value is None or value == "True":
            return f"--{name}"
        return f"--no{name}" if value == "False" else f"--{name}={value}"

    return _SETTING.sub(flag, message)


def on_one_line(message: str) -> str:
    """Returns a message with every run of white space as one space."""
    return " ".join(message.split())
