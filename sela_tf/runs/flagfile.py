"""The settings of a run on disk, flags.cfg: read, and continued by the settings of a later call."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from sela_tf.cli import flags
from sela_tf.runs.names import FLAGS
from sela_tf.settings.fields import CHOSEN, ConfigError
from sela_tf.settings.training import SelaConfig


def read_config(workdir: str | os.PathLike[str]) -> SelaConfig:
    """Returns the settings of the run in `workdir`.

    Raises:
        ConfigError: there is none, or they cannot be read.
    """
    path = pathlib.Path(workdir).expanduser() / FLAGS
    if not path.exists():
        raise ConfigError(f"`workdir={workdir}` holds no run (no {FLAGS})")
    try:
        return flags.from_flagfile(path)
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged, or was written by another version of sela_tf ({error})") from error


def given_by(config: SelaConfig) -> dict[str, Any]:
    """Returns the settings of `config` as if each had been given, but for those that older runs have no choice of and that have their default."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata["before"] is None or getattr(config, field.name) != field.default
    }


def settings_of_run(workdir: str | os.PathLike[str], given: Mapping[str, Any]) -> tuple[SelaConfig, SelaConfig | None]:
    """Returns the settings of a run that begins or continues in `workdir`.

    A run that is there keeps every setting that is not given. Given ones must be its own, but for a larger `epochs` and those that a
    continued run may change.

    Args:
        workdir: the directory of the run; "" for none.
        given: settings by name; those that are None are not given.

    Returns:
        The settings with absolute paths, and those of the run that is there, None if there is none.

    Raises:
        ConfigError: a setting is out of range or differs from the run's, with both values; or flags.cfg is damaged.
    """
    path = pathlib.Path(workdir).expanduser().absolute()
    given = {name: value for name, value in given.items() if value is not CHOSEN}
    if not workdir or not (path / FLAGS).exists():
        return SelaConfig(**given).absolute(), None
    try:
        old = flags.from_flagfile(path / FLAGS)
    except ConfigError as error:
        raise ConfigError(f"{path / FLAGS} is damaged ({error}): name another directory") from error
    new = dataclasses.replace(old, **given).absolute()
    different = [
        f"`{field.name}` was {getattr(old, field.name)!r}, is {getattr(new, field.name)!r}"
        for field in dataclasses.fields(SelaConfig)
        if getattr(old, field.name) != getattr(new, field.name)
        and not field.metadata["may_change"]
        and not (field.name == "epochs" and new.epochs > old.epochs)
    ]
    if different:
        raise ConfigError(
            f"`workdir={path}` holds another run: {'; '.join(different)}. Name another directory, or repeat the run's own settings "
            "(more `epochs` may be asked for)"
        )
    return new, old
