"""The settings of `python -m sela_tf.train` that are not part of the run."""

from __future__ import annotations

import dataclasses

from sela_tf.settings.fields import NOT_NEGATIVE, ConfigError, check_settings, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The settings of `python -m sela_tf.train` that are not part of the run: the same run may lie anywhere."""

    workdir: str = option("", "Directory of the run; made if missing.")
    minutes: float = option(
        0.0, "Minutes that a new run may take here, by which `epochs` is chosen; 0 for no limit.", bound=NOT_NEGATIVE
    )
    restart: bool = option(
        False,
        "Begin the run in `workdir` anew, with its settings or those that are given. Its checkpoints and its course are removed; a finished "
        "network stays until there is another.",
    )
    workers_timeout: float = option(
        600.0, "Seconds within which all processes that TF_CONFIG names have to come.", bound=NOT_NEGATIVE
    )
    dry_run: bool = option(False, "Run every part once on a few images and estimate time and memory; no run is written.")

    def __post_init__(self) -> None:
        if not self.workdir and not self.dry_run:
            raise ConfigError("`workdir` is missing: the directory that the run is written to")
        check_settings(self)
