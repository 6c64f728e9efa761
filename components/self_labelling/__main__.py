"""The door: python -m components.self_labelling --examples=DIR --model=DIR --labels=DIR --metrics=DIR --flagfile=configs/NAME.cfg"""

from __future__ import annotations

import shlex
import sys
from typing import NamedTuple

from absl import flags as absl_flags

from components.settings import FROM_EXAMPLES, SelfLabellingSettings, training_config
from sela_tf.cli import flags
from sela_tf.cli.command import run_command
from sela_tf.settings.training import SelaConfig

_USAGE = """python -m components.self_labelling --examples=DIR --model=DIR --labels=DIR --metrics=DIR --flagfile=configs/NAME.cfg [--setting=value …]

Trains on what components.data_ingestion wrote, and writes the model, its labels and its metrics. --dataset of a flagfile is replaced by the
examples. The settings:
"""


class _Asked(NamedTuple):
    settings: SelfLabellingSettings
    config: SelaConfig


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input, 128 + n after signal n."""
    argv = sys.argv if argv is None else argv

    def work(asked: _Asked) -> int:
        from components.self_labelling.executor import self_label
        from sela_tf.reporting.tables import results_table
        from sela_tf.training.loop import TrainingInterrupted

        try:
            results = self_label(asked.settings, asked.config)
        except TrainingInterrupted as stopped:
            print(
                f"{stopped}. The same command continues:\n  python -m components.self_labelling {shlex.join(argv[1:])}", flush=True
            )
            return 128 + stopped.signal_number
        print(
            f"\n{results_table(results)}\n\nModel: {asked.settings.model}, labels: {asked.settings.labels}, metrics: {asked.settings.metrics}"
        )
        return 0

    return run_command(
        argv,
        name="components.self_labelling",
        usage=_USAGE,
        define=_define,
        read=_read,
        work=work,
        stopped="; the same command continues from the last checkpoint, if there is one",
    )


def _define(values: absl_flags.FlagValues) -> None:
    flags.define(values, SelfLabellingSettings)
    flags.define(values, SelaConfig)


def _read(values: absl_flags.FlagValues) -> _Asked:
    settings = flags.settings(values, SelfLabellingSettings)
    given = {name: "" for name in FROM_EXAMPLES if name in values}
    config = flags.settings(values, SelaConfig, **{**given, "dataset": "records:"})
    return _Asked(settings, training_config(config, settings.examples))


if __name__ == "__main__":
    sys.exit(main())
