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

_OF_NETWORK = (
    "backbone", "width", "hidden_units", "num_heads", "num_clusters", "image_size", "background", "eval_fraction"
)  # fmt: skip
"""Settings that the network, the pixels and the held-out images of a run fix for a run that continues it."""
_ANEW: dict[str, Any] = {
    **dict.fromkeys(("epochs", "learning_rate", "num_relabellings", "monitor_epochs"), CHOSEN),
    "backbone_weights": "", "backbone_learning_rate": 0.0, "frozen_epochs": 0, "labels_from": "",
}  # fmt: skip
"""Settings that a run does not take over from the run that it continues."""


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
    """Returns the settings of `config` as if each had been given, but for those that older runs have no choice of and that have their default.

    Those of a run that continues another one are given where they depart from their defaults.
    """
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if (field.metadata["before"] is None and not config.continue_from) or getattr(config, field.name) != field.default
    }


def settings_of_run(workdir: str | os.PathLike[str], given: Mapping[str, Any]) -> tuple[SelaConfig, SelaConfig | None]:
    """Returns the settings of a run that begins or continues in `workdir`.

    A run that is there keeps every setting that is not given. Given ones must be its own, but for a larger `epochs` and those that a
    continued run may change. A new run with `continue_from` has the settings of that one where they are not given.

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
    # The settings refuse a value that is no path.
    earlier = SelaConfig(dataset="python:", continue_from=given.get("continue_from", "")).continue_from
    if earlier and workdir and os.path.realpath(os.path.expanduser(earlier)) == os.path.realpath(path):
        raise ConfigError(f"`continue_from={earlier}` is the directory of the new run, too: name another one as `workdir`")
    if not workdir or not (path / FLAGS).exists():
        return (_settings_from(given) if earlier else SelaConfig(**given).absolute()), None
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


def _settings_from(given: Mapping[str, Any]) -> SelaConfig:
    """Returns the settings of a new run that continues another one, whose directory is the setting `continue_from`.

    Raises:
        ConfigError: there is no such run; or a setting is out of range, or does not fit its network.
    """
    try:
        old = read_config(given["continue_from"])
    except ConfigError as error:
        raise error.renamed(workdir="continue_from") from error
    new = dataclasses.replace(old, **{**_ANEW, **given}).absolute()
    different = [
        f"`{name}={getattr(old, name)}`, not `{name}={getattr(new, name)}`"
        for name in _OF_NETWORK
        # An `image_size` of 0 stands for the size of the images, which is known when they are loaded.
        if getattr(new, name) != getattr(old, name) and not (name == "image_size" and old.image_size == 0)
    ]
    if different:
        raise ConfigError(
            f"`continue_from={new.continue_from}` is a run with {', '.join(different)}: leave that out, or train a new run without "
            "`continue_from`"
        )
    return new
