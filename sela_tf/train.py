"""The command python -m sela_tf.train --flagfile=configs/digits.cfg --workdir=DIR"""

from __future__ import annotations

import sys

from sela_tf.cli.command import CONTINUES, Command
from sela_tf.settings.training import SelaConfig, TrainOptions

_USAGE = """python -m sela_tf.train --flagfile=configs/NAME.cfg --workdir=DIR [--setting=value …]

Trains a network by self-labelling, or continues the run in DIR. Flags:
"""


def _work(config: SelaConfig, place: TrainOptions) -> int:
    from sela_tf.reporting.tables import results_table
    from sela_tf.training.dry_run import dry_run
    from sela_tf.training.run import run

    if place.dry_run:
        dry_run(config)
        return 0
    results = run(config, place.workdir)
    print(
        f"\n{results_table(results)}\n\nThe run lies in {place.workdir}: results.json, labels.npz, model.weights.h5, metrics.jsonl, tensorboard/"
    )
    return 0


main = Command(name="sela_tf.train", usage=_USAGE, settings=(SelaConfig, TrainOptions), work=_work, stopped=CONTINUES)

if __name__ == "__main__":
    sys.exit(main())
