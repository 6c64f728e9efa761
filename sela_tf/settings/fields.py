"""Fields of settings: a value, its help, its bounds. Each field is a flag of a command, too."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

_SETTING = re.compile(r"`(?P<name>\w+)(?P<value>=[^`]*)?`")


def reworded(message: str, word: Callable[[str, str | None], str | None]) -> str:
    """Returns a message with its settings, which stand in backticks, written in another way.

    Args:
        message: text such as "`num_heads` must be at least 1. Received: `num_heads=0`".
        word: gets the name and the value (None where there is none) of each; returns its new text, or None to leave it.
    """

    def new(found: re.Match[str]) -> str:
        value = found["value"]
        text = word(found["name"], None if value is None else value[1:])
        return found[0] if text is None else text

    return _SETTING.sub(new, message)


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it, its value, and the way out.

    Settings stand in backticks, as in "`num_heads` must be at least 1. Received: `num_heads=0`"; the command line writes them as flags.
    """

    exit_status = 2
    """The exit status of a command that ends with this error."""

    def renamed(self, **names: str) -> ConfigError:
        """Returns the error with settings called as its caller calls them: `renamed(workdir="model")`."""

        def word(name: str, value: str | None) -> str | None:
            return f"`{names[name]}{'' if value is None else f'={value}'}`" if name in names else None

        return ConfigError(reworded(str(self), word))


class Bound(NamedTuple):
    """The values that a real number may have: an interval, of which either end may be left out."""

    low: float
    high: float = math.inf
    open_below: bool = False
    """The lower end itself is refused."""
    open_above: bool = False
    """The upper end itself is refused."""

    def check(self, name: str, value: float) -> None:
        """Checks the value of the setting `name`.

        Raises:
            ConfigError: the value lies outside, or is not finite.
        """
        below = value <= self.low if self.open_below else value < self.low
        above = value >= self.high if self.open_above else value > self.high
        if below or above or not math.isfinite(value):
            words = f"{'above' if self.open_below else 'at least'} {self.low}"
            if self.high != math.inf:
                words += f" and {'below' if self.open_above else 'at most'} {self.high}"
            raise ConfigError(f"`{name}` must be {words}. Received: `{name}={value}`")


POSITIVE, NOT_NEGATIVE = Bound(0, open_below=True), Bound(0)
SHARE = Bound(0, 1)
POSITIVE_SHARE = Bound(0, 1, open_below=True)
SHARE_BELOW_1 = Bound(0, 1, open_above=True)
INNER_SHARE = Bound(0, 1, open_below=True, open_above=True)
GIB = Bound(0, 2**20, open_below=True)
"""Gibibytes: any larger number is a mistake, such as bytes."""

CHOSEN: Any = None
"""The default of a setting that is chosen from the images (`sela_tf.settings.choices`); a run that began has a value in its place."""


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: int | None = None,
    bound: Bound | None = None,
    may_change: bool = False,
    example: str = "",
    before: Any = None,
) -> Any:
    """Returns a dataclass field that is also a flag.

    Args:
        default: the value where none is given; `CHOSEN` for one that depends on the images.
        help: the text that --help shows.
        choices: all values that a word may have; empty for any.
        at_least: the least value of a whole number, which is always below 2**31.
        bound: the interval of a real number.
        may_change: a continued run may change the setting, because it is about the machine, or about what is shown or kept.
        example: a list of numbers as it is written, for an error.
        before: the value that runs have which were made before there was the setting; None for the default.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "at_least": at_least,
        "bound": bound,
        "may_change": may_change,
        "example": example,
        "before": before,
    }
    return dataclasses.field(default=default, metadata=metadata)


def default_of(settings: Any, name: str) -> Any:
    """Returns the default of the field `name` of a dataclass of settings."""
    return next(field.default for field in dataclasses.fields(settings) if field.name == name)


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "True or False"),
    "str": ((str,), "text"),
}


def _plain(name: str, kind: str, value: Any) -> Any:
    """Returns the value of a setting as its declared kind: a scalar of NumPy as Python's, a path as text.

    Raises:
        ConfigError: the value is of another kind.
    """
    if kind not in _KINDS or value is CHOSEN:
        return value
    types, words = _KINDS[kind]
    if not isinstance(value, types) and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if kind == "str" and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        raise ConfigError(f"`{name}` must be {words}. Received: {value!r}")
    return value


def check_settings(settings: Any) -> None:
    """Checks every field of a dataclass of settings against the kind, bounds and choices that it was given, but those yet to be chosen.

    Scalars of NumPy become Python's, and paths text, in place.

    Raises:
        ConfigError: a value is of another kind, or out of range.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        plain = _plain(field.name, str(field.type), value)
        if plain is not value:
            object.__setattr__(settings, field.name, plain)
    fields = {
        field.name: (field.metadata, value)
        for field in dataclasses.fields(settings)
        if (value := getattr(settings, field.name)) is not CHOSEN
    }
    for name, (metadata, value) in fields.items():
        least = metadata["at_least"]
        if least is not None and not least <= value < 2**31:
            words = f"at least {least}" if value < least else "below 2**31"
            raise ConfigError(f"`{name}` must be {words}. Received: `{name}={value}`")
    for name, (metadata, value) in fields.items():
        if metadata["bound"] is not None:
            metadata["bound"].check(name, value)
    for name, (_, value) in fields.items():
        if isinstance(value, str) and (value != value.rstrip() or "\n" in value or "\r" in value):
            raise ConfigError(
                f"`{name}` must not end with a blank or hold a line break, which flagfiles lose: rename it. Received: {value!r}"
            )
    for name, (metadata, value) in fields.items():
        if metadata["choices"] and value not in metadata["choices"]:
            raise ConfigError(f"`{name}` must be one of {', '.join(metadata['choices'])}. Received: {value!r}")
