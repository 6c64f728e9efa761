"""The settings of a run on disk, flags.cfg: read, and continued by the settings of a later call."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from sela_tf.cli import flags
from sela_tf.files.atomic import write_whole
from sela_tf.files.saves import newest_meta
from sela_tf.runs.finished import read_finished
from sela_tf.runs.names import CHECKPOINTS, FLAGS
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


_FIRST, _LAST = "# The settings of this run. The last line tells that none is missing.", "# whole"


def write_settings(workdir: pathlib.Path, config: SelaConfig) -> None:
    """Writes flags.cfg, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(workdir / FLAGS, f"{_FIRST}\n{flags.to_flagfile(config)}{_LAST}\n")


def settings_there(workdir: pathlib.Path) -> tuple[SelaConfig | None, str]:
    """Returns the settings of the run in a directory, None where there is no run; and how flags.cfg is damaged, "" where it is whole.

    They are those of flags.cfg. Where that is gone, empty or cut, they are those of the newest checkpoint, or of the finished network.

    Raises:
        ConfigError: flags.cfg is damaged, and the settings are nowhere else.
    """
    path = workdir / FLAGS
    damage, lines = "is gone", None
    try:
        lines = path.read_text().splitlines()
        # Older runs have neither line, and hold one setting at least.
        damage = "" if (_LAST in lines if _FIRST in lines else lines) else "is cut" if lines else "is empty"
        if not damage:
            return flags.from_lines(lines), ""
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        damage = f"is damaged ({error})"
    meta, finished = newest_meta(workdir / CHECKPOINTS), read_finished(workdir)
    for kept in (meta and meta.get("settings"), finished and finished.settings):
        if kept:
            return _kept_elsewhere(workdir, kept), f"{path} {damage}: its settings are those of the run's other files"
    if damage == "is gone":
        return None, ""
    raise ConfigError(f"{path} {damage}: name another directory, or begin anew in this one with `restart`")


def _kept_elsewhere(workdir: pathlib.Path, lines: Iterable[str]) -> SelaConfig:
    """Returns the settings that a checkpoint or network.json holds.

    Raises:
        ConfigError: they cannot be read.
    """
    try:
        return flags.from_lines(lines)
    except ConfigError as error:
        raise ConfigError(
            f"the settings of the run in {workdir} are damaged, or were written by another version of sela_tf ({error})"
        ) from error


def read_config(workdir: str | os.PathLike[str]) -> SelaConfig:
    """Returns the settings of the run in `workdir`: those that its finished network was trained with, if there is one.

    Raises:
        ConfigError: there is no run, or its settings cannot be read.
    """
    path = pathlib.Path(workdir).expanduser()
    finished, config = read_finished(path), settings_there(path)[0]
    if finished is not None and finished.settings is not None:
        of_network = _kept_elsewhere(path, finished.settings)
        if config is None or finished.superseded or config.epochs != of_network.epochs:
            return of_network
    if config is None:
        raise ConfigError(f"`workdir={workdir}` holds no run (no {FLAGS})")
    return config


def given_by(config: SelaConfig) -> dict[str, Any]:
    """Returns the settings of `config` as if each had been given, but for those that older runs have no choice of and that have their default.

    Those of a run that continues another one are given where they depart from their defaults.
    """
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if (field.metadata["before"] is None and not config.continue_from) or getattr(config, field.name) != field.default
    }


def settings_of_run(
    workdir: str | os.PathLike[str], given: Mapping[str, Any], *, restart: bool = False
) -> tuple[SelaConfig, SelaConfig | None]:
    """Returns the settings of a run that begins or continues in `workdir`.

    A run that is there keeps every setting that is not given. Given ones must be its own, but for a larger `epochs` and those that a
    continued run may change. A new run with `continue_from` has the settings of that one where they are not given.

    Args:
        workdir: the directory of the run; "" for none.
        given: settings by name; those that are None are not given.
        restart: the run begins anew: any setting may differ.

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
    old = _settings_to_go_on_from(path, restart=restart) if workdir else None
    if old is None:
        return (_settings_from(given) if earlier else SelaConfig(**given).absolute()), None
    new = dataclasses.replace(old, **given).absolute()
    if restart:
        return new, old
    different = [
        f"`{field.name}` was {getattr(old, field.name)!r}, is {getattr(new, field.name)!r}"
        for field in dataclasses.fields(SelaConfig)
        if getattr(old, field.name) != getattr(new, field.name)
        and not field.metadata["may_change"]
        and not (field.name == "epochs" and new.epochs > old.epochs)
    ]
    if different:
        raise ConfigError(
            f"`workdir={path}` holds another run: {'; '.join(different)}. Name another directory, repeat the run's own settings (more `epochs` "
            "may be asked for), or begin anew with `restart`"
        )
    return new, old


def _settings_to_go_on_from(path: pathlib.Path, *, restart: bool) -> SelaConfig | None:
    """Returns the settings of the run in a directory, None where there is none.

    Raises:
        ConfigError: they are damaged, and the run does not begin anew.
    """
    try:
        return settings_there(path)[0]
    except ConfigError:
        if restart:
            return None
        raise


def _settings_from(given: Mapping[str, Any]) -> SelaConfig:
    """Returns the settings of a new run that continues another one, whose directory is the setting `continue_from`.

    Raises:
        ConfigError: there is no such run; or a setting is out of range, or does not fit its network.
    """
    try:
        old = read_config(given["continue_from"])
    except ConfigError as error:
        renamed = error.renamed(workdir="continue_from")
        named = "`continue_from" in str(renamed)
        raise renamed if named else ConfigError(f"`continue_from={given['continue_from']}`: {error}") from error
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
