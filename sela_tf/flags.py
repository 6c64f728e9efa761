"""Command-line flags, made from the fields of SelaConfig; and the way back, to a flagfile."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from absl import flags

from sela_tf.config import ConfigError, SelaConfig


def define(values: flags.FlagValues) -> None:
    """A flag for each field of the config."""
    for field in dataclasses.fields(SelaConfig):
        options: dict[str, Any] = {
            "name": field.name,
            "help": field.metadata["help"],
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


def parse(values: flags.FlagValues, argv: list[str]) -> None:
    """Parses `argv`, flagfiles included.

    Raises:
        ConfigError: a flag is unknown or malformed, a flagfile cannot be read, or an argument is no flag.
    """
    try:
        rest = values(argv)[1:]
    except (flags.Error, UnicodeDecodeError, OSError) as error:
        files = [arg for arg in argv if arg.lstrip("-").startswith("flagfile")]
        raise ConfigError(" ".join(str(error).split()) + (f" (also read: {' '.join(files)})" if files else "")) from error
    if rest:
        raise ConfigError(f"{rest[0]!r} is no flag: every setting is written --name=value")


def config(values: flags.FlagValues) -> SelaConfig:
    """The config that the parsed flags stand for.

    Raises:
        ConfigError: a value is out of range.
    """
    settings = {field.name: values[field.name].value for field in dataclasses.fields(SelaConfig)}
    try:
        settings["lr_drops"] = tuple(float(share) for share in settings["lr_drops"])
    except ValueError as error:
        raise ConfigError(f"--lr_drops must be numbers, as in 0.375,0.75. Received: {settings['lr_drops']}") from error
    return SelaConfig(**settings).absolute()


def to_flagfile(config: SelaConfig) -> str:
    """Every setting on a line of its own; read back, it gives the same config."""
    return "".join(_line(field.name, getattr(config, field.name)) for field in dataclasses.fields(config))


def from_flagfile(path: str | os.PathLike[str]) -> SelaConfig:
    """The config that `to_flagfile` wrote.

    Raises:
        ConfigError: the file is missing or not such a file.
    """
    values = flags.FlagValues()
    define(values)
    parse(values, ["sela_tf", f"--flagfile={path}"])
    return config(values)


def _line(name: str, value: Any) -> str:
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, tuple):
        value = ",".join(map(repr, value))
    return f"--{name}={value}\n"
