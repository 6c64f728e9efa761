"""The door: python -m sela_tf.train --flagfile=configs/digits.cfg --workdir=DIR"""

from __future__ import annotations

import shlex
import sys
from typing import NamedTuple

from absl import flags as absl_flags

from sela_tf.cli import flags
from sela_tf.cli.command import run_command
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig

_USAGE = """python -m sela_tf.train --flagfile=configs/NAME.cfg --workdir=DIR [--setting=value …]

Trains a network by self-labelling, or continues the run in DIR. Other than the settings:
"""


class _Asked(NamedTuple):
    config: SelaConfig
    workdir: str
    dry_run: bool


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input, 128 + n after signal n."""
    argv = sys.argv if argv is None else argv

    def work(asked: _Asked) -> int:
        from sela_tf.reporting.tables import results_table
        from sela_tf.training.dry_run import dry_run
        from sela_tf.training.loop import TrainingInterrupted
        from sela_tf.training.run import run

        if asked.dry_run:
            dry_run(asked.config)
            return 0
        try:
            results = run(asked.config, asked.workdir)
        except TrainingInterrupted as stopped:
            print(f"{stopped}. The same command continues:\n  python -m sela_tf.train {shlex.join(argv[1:])}", flush=True)
            return 128 + stopped.signal_number
        print(
            f"\n{results_table(results)}\n\nThe run lies in {asked.workdir}: "
            "results.json, labels.npz, model.weights.h5, metrics.jsonl, tensorboard/"
        )
        return 0

    return run_command(
        argv,
        name="sela_tf.train",
        usage=_USAGE,
        define=_define,
        read=_read,
        work=work,
        stopped="; the same command continues from the last checkpoint, if there is one",
    )


def _define(values: absl_flags.FlagValues) -> None:
    flags.define(values, SelaConfig)
    absl_flags.DEFINE_string("workdir", None, "Directory of the run; made if missing.", flag_values=values)
    absl_flags.DEFINE_bool(
        "dry_run", False, "Try everything once on little, estimate time and memory; no run is written.", flag_values=values
    )


def _read(values: absl_flags.FlagValues) -> _Asked:
    config = flags.settings(values, SelaConfig).absolute()
    workdir = values["workdir"].value
    if not workdir and not values["dry_run"].value:
        raise ConfigError("--workdir is missing: the directory that the run is written to")
    return _Asked(config, workdir, values["dry_run"].value)


if __name__ == "__main__":
    sys.exit(main())
