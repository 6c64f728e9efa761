"""The wording of errors on the command line: settings as flags, on one line."""

from __future__ import annotations

from collections.abc import Container

from sela_tf.settings.fields import reworded


def in_flags(message: str, flags: Container[str]) -> str:
    """Returns a message of the library with its settings written as flags of the command.

    The library knows no flags: its messages name a setting in backticks, as Keras' do. `num_heads` becomes --num_heads, `num_heads=2`
    becomes --num_heads=2, `report=False` becomes --noreport. Other words in backticks stay as they are.

    Args:
        message: the text of an exception.
        flags: the names of the command's flags.
    """

    def flag(name: str, value: str | None) -> str | None:
        if name not in flags:
            return None
        if value is None or value == "True":
            return f"--{name}"
        return f"--no{name}" if value == "False" else f"--{name}={value}"

    return reworded(message, flag)


def on_one_line(message: str) -> str:
    """Returns a message with every run of white space as one space."""
    return " ".join(message.split())
