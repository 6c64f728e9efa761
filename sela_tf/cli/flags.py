"""Command-line flags, made from the fields of a dataclass of settings; and the way back, to a flagfile."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from sela_tf.cli.wording import in_flags
from sela_tf.settings.fields import CHOSEN, ConfigError
from sela_tf.settings.training import SelaConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
_SKIP_BAD_IMAGES = re.compile(r"--?(?P<no>no)?skip_bad_images(?:=(?P<value>true|false|t|f|1|0))?", re.IGNORECASE)
"""A flag of runs that exist, as absl reads it."""
_TUPLES: dict[str, Callable[[str], Any]] = {"tuple[float, ...]": float, "tuple[int, ...]": int, "tuple[str, ...]": str}


def define(values: flags.FlagValues, kind: type[DataclassInstance], *, leave_out: Collection[str] = ()) -> None:
    """A flag for each field of `kind`, a dataclass such as SelaConfig, but those left out."""
    names = {field.name for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(kind):
        if field.name in leave_out:
            continue
        options: dict[str, Any] = {
            "name": field.name,
            "help": in_flags(field.metadata["help"], names),
            "default": field.default,
            "flag_values": values,
        }
        if field.metadata["choices"]:
            flags.DEFINE_enum(enum_values=field.metadata["choices"], **options)
        elif field.type == "bool":
            flags.DEFINE_bool(**options)
        elif field.type == "int":
            flags.DEFINE_integer(**options)
        elif field.type == "float":
            flags.DEFINE_float(**options)
        elif field.type == "str":
            flags.DEFINE_string(**options)
        else:
            options["default"] = [str(value) for value in options["default"]]
            flags.DEFINE_list(**options)


def parse(values: flags.FlagValues, argv: list[str], *, tell: Callable[[str], None] | None = None) -> None:
    """Parses `argv`, flagfiles included.

    Args:
        values: Flags that were defined; they get their values.
        argv: The name of the command and its arguments. Old names of flags are understood.
        tell: A function that is called with a line for each flag that has an old name.

    Raises:
        ConfigError: a flag is unknown or malformed, a flagfile cannot be read, or an argument is no flag.
    """
    try:
        rest = values([argv[0], *(_renamed(arg, values, tell) for arg in values.read_flags_from_files(argv[1:]))])[1:]
    except (flags.Error, UnicodeDecodeError, OSError) as error:
        files = [arg for arg in argv if arg.lstrip("-").startswith("flagfile")]
        raise ConfigError(" ".join(str(error).split()) + (f" (also read: {' '.join(files)})" if files else "")) from error
    if rest:
        raise ConfigError(f"{rest[0]!r} is no flag: every setting is written --name=value")


def _renamed(arg: str, values: flags.FlagValues, tell: Callable[[str], None] | None) -> str:
    """Returns an argument with the present name of its flag: `--skip_bad_images` is `--max_rejected=1`."""
    found = _SKIP_BAD_IMAGES.fullmatch(arg)
    if found is None or "max_rejected" not in values:
        return arg
    is_on = not found["no"] and (found["value"] or "true").lower() in ("true", "t", "1")
    new = f"--max_rejected={int(is_on)}"
    if tell is not None:
        tell(f"{arg} is the old name of {new}")
    return new


def settings(values: flags.FlagValues, kind: type[Settings], **given: Any) -> Settings:
    """The settings that the parsed flags stand for; some fields may be given instead.

    Raises:
        ConfigError: a value is out of range.
    """
    fields = [field for field in dataclasses.fields(kind) if field.name not in given]
    return kind(**_parsed(values, fields), **given)


def typed(values: flags.FlagValues, kind: type[DataclassInstance]) -> dict[str, Any]:
    """Returns the fields of `kind` whose flags were typed, on the command line or in a flagfile, with their values.

    Raises:
        ConfigError: a value is no number.
    """
    return _parsed(values, [field for field in dataclasses.fields(kind) if values[field.name].present])


def _parsed(values: flags.FlagValues, fields: Collection[dataclasses.Field[Any]]) -> dict[str, Any]:
    found = {}
    for field in fields:
        value = values[field.name].value
        parse_one = _TUPLES.get(str(field.type))
        if parse_one is not None:
            try:
                value = tuple(parse_one(item) for item in value)
            except ValueError as error:
                numbers = field.metadata["example"]
                raise ConfigError(f"--{field.name} must be numbers, as in {numbers}. Received: {value}") from error
        found[field.name] = value
    return found


def to_flagfile(config: DataclassInstance) -> str:
    """Every setting that has a value on a line of its own; read back, it gives the same config."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return "".join(_flag(name, value) + "\n" for name, value in fields.items() if value is not CHOSEN)


def departures(settings: DataclassInstance, *, leave_out: Collection[str] = ()) -> list[str]:
    """A flag for every setting that departs from its default."""
    fields = [field for field in dataclasses.fields(settings) if field.name not in leave_out]
    return [_flag(field.name, value) for field in fields if (value := getattr(settings, field.name)) != field.default]


def from_flagfile(path: str | os.PathLike[str]) -> SelaConfig:
    """Returns the settings that a file with lines of `to_flagfile` stands for.

    Raises:
        ConfigError: the file is missing or not such a file.
    """
    try:
        return from_lines(pathlib.Path(path).read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(error)) from error


def from_lines(lines: Iterable[str]) -> SelaConfig:
    """Returns the settings that lines of `to_flagfile` stand for, perhaps written before there were some of the settings.

    Raises:
        ConfigError: they are not such lines.
    """
    values = flags.FlagValues()
    define(values, SelaConfig)
    written = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if stray := [line for line in written if line.lstrip("-").split("=")[0] in ("flagfile", "undefok")]:
        raise ConfigError(f"{stray[0]!r} is no setting")
    parse(values, ["sela_tf", *written])
    older = {
        field.name: field.metadata["before"]
        for field in dataclasses.fields(SelaConfig)
        if field.metadata["before"] is not None and not values[field.name].present
    }
    return settings(values, SelaConfig, **older).absolute()


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, tuple):
        value = ",".join(item if isinstance(item, str) else repr(item) for item in value)
    return f"--{name}={value}"
