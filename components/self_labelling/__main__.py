"""The command python -m components.self_labelling --examples=DIR --model=DIR --labels=DIR --metrics=DIR --flagfile=configs/NAME.cfg"""

from __future__ import annotations

import sys

from absl import flags as absl_flags

from components.settings import FROM_EXAMPLES, SelfLabellingSettings, training_config
from sela_tf.cli import flags
from sela_tf.cli.command import CONTINUES, Command
from sela_tf.settings.training import SelaConfig

_USAGE = """python -m components.self_labelling --examples=DIR --model=DIR --labels=DIR --metrics=DIR --flagfile=configs/NAME.cfg [--setting=value …]

Trains on what components.data_ingestion wrote, and writes the model, its labels and its metrics. --dataset of a flagfile is replaced by the
examples. Flags:
"""


def _read(values: absl_flags.FlagValues) -> tuple[SelfLabellingSettings, SelaConfig]:
    settings = flags.settings(values, SelfLabellingSettings)
    given = {name: "" for name in FROM_EXAMPLES if name in values}
    config = flags.settings(values, SelaConfig, **{**given, "dataset": "records:"})
    return settings, training_config(config, settings.examples)


def _work(settings: SelfLabellingSettings, config: SelaConfig) -> int:
    from components.self_labelling.executor import self_label

    self_label(settings, config)
    print(f"Model: {settings.model}, labels: {settings.labels}, metrics: {settings.metrics}")
    return 0


main = Command(
    name="components.self_labelling",
    usage=_USAGE,
    settings=(SelfLabellingSettings, SelaConfig),
    work=_work,
    read=_read,
    stopped=CONTINUES,
)

if __name__ == "__main__":
    sys.exit(main())
