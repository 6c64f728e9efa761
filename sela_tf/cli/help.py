"""The text of --help: flags under the headings of their settings, each with its meaning and its default."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from sela_tf.settings.fields import CHOSEN

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_WIDTH = 100
_OF_ALL = ("recipe", "flagfile", "help", "version", "debug")


def help_text(usage: str, kinds: Sequence[type[DataclassInstance]], values: flags.FlagValues) -> str:
    """Returns what --help prints.

    Args:
        usage: the text above the flags.
        kinds: dataclasses of settings, whose SECTIONS are the headings.
        values: the flags of the command.
    """
    lines = [usage.rstrip()]
    shown = set(_OF_ALL)
    for kind in kinds:
        sections: dict[str, str] = getattr(kind, "SECTIONS", {})
        for number, field in enumerate(dataclasses.fields(kind)):
            if field.name in sections or (number == 0 and len(kinds) > 1):
                lines += ["", f"{sections.get(field.name, 'This command')}:"]
            if field.name in values and field.name not in shown:
                lines += _entry(values[field.name], is_chosen=field.default is CHOSEN)
                shown.add(field.name)
    others = [name for name in values if name == values[name].name and name not in shown]
    if others:
        lines += ["", "Others:", *(line for name in others for line in _entry(values[name]))]
    lines += ["", "All commands:", *(line for name in _OF_ALL if name in values for line in _entry(values[name]))]
    return "\n".join(lines)


def _entry(flag: flags.Flag, *, is_chosen: bool = False) -> Iterator[str]:
    """Yields the lines of one flag."""
    choices = getattr(flag.parser, "enum_values", None)
    meaning = flag.help or ""
    if choices:
        # absl begins the help of a choice with the choices, between < and >.
        meaning = meaning.partition(">")[2].lstrip(": ")
        yield f"  --{flag.name}={'|'.join(choices)}"
    else:
        yield f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}=…"
    default = "chosen from the images" if is_chosen else default_in_words(flag.default)
    yield from textwrap.wrap(
        meaning + (f" (default: {default})" if default else ""), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
    )


def default_in_words(value: Any) -> str:
    """Returns a default as it is typed on the command line; "" where nothing is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return "" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)
