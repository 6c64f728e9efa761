"""Fields of settings that are also flags, and what their values may be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class ConfigError(ValueError):
    """A number that cannot be; the message names it and the way out."""


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), shown: bool = False, example: str = "") -> Any:
    """A field that is also a flag.

    Args:
        default: its value.
        help: what --help says.
        choices: all that it may be.
        shown: it changes what is shown or kept, not what is computed.
        example: of a list of numbers.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "shown": shown, "example": example})


class Bound(NamedTuple):
    """Of a number."""

    low: float
    high: float = math.inf
    open_below: bool = False
    """The lower bound itself is refused."""
    open_above: bool = False

    def check(self, name: str, value: float) -> None:
        """Raises:
        ConfigError: the value of `name` is outside.
        """
        below = value <= self.low if self.open_below else value < self.low
        above = value >= self.high if self.open_above else value > self.high
        if below or above or not math.isfinite(value):
            words = f"{'above' if self.open_below else 'at least'} {self.low}"
            if self.high != math.inf:
                words += f" and {'below' if self.open_above else 'at most'} {self.high}"
            raise ConfigError(f"`{name}` must be {words}. Received: `{name}={value}`")


SHARE, POSITIVE, NOT_NEGATIVE = Bound(0, 1), Bound(0, open_below=True), Bound(0)


GIB = Bound(0, 2**20, open_below=True)


def check_fields(settings: Any, at_least: Mapping[str, int], bounds: Mapping[str, Bound]) -> None:
    """Of whole numbers the lower bound, of others both, of words the choices."""
    for name, least in at_least.items():
        value = getattr(settings, name)
        if not least <= value < 2**31:
            bound = f"at least {least}" if value < least else "below 2**31"
            raise ConfigError(f"`{name}` must be {bound}. Received: `{name}={value}`")
    for name, bound_of in bounds.items():
        bound_of.check(name, getattr(settings, name))
    for field in dataclasses.fields(settings):
        choices = field.metadata["choices"]
        if choices and getattr(settings, field.name) not in choices:
            raise ConfigError(f"`{field.name}` must be one of {', '.join(choices)}. Received: {getattr(settings, field.name)!r}")


CACHE_HELP = "Where it is listed what is in the files of a folder, so that they are decoded once and not at every start"
