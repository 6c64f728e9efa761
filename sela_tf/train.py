"""The command python -m sela_tf.train --dataset=folder:IMAGES --workdir=RUN"""

from __future__ import annotations

import dataclasses
import sys

from absl.flags import FlagValues

from sela_tf.cli import flags
from sela_tf.cli.command import CONTINUES, Command
from sela_tf.runs.flagfile import settings_of_run
from sela_tf.settings.train_options import TrainOptions
from sela_tf.settings.training import SelaConfig

_USAGE = """python -m sela_tf.train --dataset=IMAGES --workdir=RUN [--recipe=NAME] [--setting=value …]

Trains a network by self-labelling, or continues the run in RUN. Settings that are not given are chosen from the images; a continued run keeps
its own, which lie in RUN/flags.cfg. In what follows P is the paper (arXiv 1911.05371), R its reference code. Flags:
"""


def _read(values: FlagValues) -> tuple[SelaConfig, TrainOptions]:
    place = flags.settings(values, TrainOptions)
    return settings_of_run(place.workdir, flags.typed(values, SelaConfig), restart=place.restart)[0], place


def _work(config: SelaConfig, place: TrainOptions) -> int:
    from sela_tf.training.dry_run import dry_run
    from sela_tf.training.run import run

    if place.dry_run:
        dry_run(config)
        return 0
    # A setting of the earlier run is in `config` already; one that was typed at its default must not fall back to it.
    whole = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)} if config.continue_from else {}
    run(config, place.workdir, minutes=place.minutes, restart=place.restart, workers_timeout=place.workers_timeout, **whole)
    return 0


main = Command(name="sela_tf.train", usage=_USAGE, settings=(SelaConfig, TrainOptions), work=_work, read=_read, stopped=CONTINUES)

if __name__ == "__main__":
    sys.exit(main())
