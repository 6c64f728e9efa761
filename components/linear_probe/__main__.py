"""The door: python -m components.linear_probe --model=DIR --examples=DIR --evaluation=DIR --blessing=DIR"""

from __future__ import annotations

import sys
from typing import NamedTuple

from absl import flags as absl_flags

from components.settings import FROM_EXAMPLES, RUN, LinearProbeSettings
from sela_tf.cli import flags
from sela_tf.cli.command import run_command
from sela_tf.settings.commands import ProbeConfig

_USAGE = """python -m components.linear_probe --model=DIR --examples=DIR --evaluation=DIR --blessing=DIR [--setting=value …]

Linear probes, kNN and clustering of a model that components.self_labelling wrote, and a verdict. The settings:
"""


class _Asked(NamedTuple):
    """The parsed command line."""

    settings: LinearProbeSettings
    probe: ProbeConfig


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 whatever the verdict, 2 for bad input, 128 + n after signal n."""
    return run_command(
        argv,
        name="components.linear_probe",
        usage=_USAGE,
        define=_define,
        read=_read,
        work=_work,
        stopped="; nothing was written",
    )


def _define(values: absl_flags.FlagValues) -> None:
    flags.define(values, LinearProbeSettings)
    flags.define(values, ProbeConfig, leave_out=FROM_EXAMPLES)


def _read(values: absl_flags.FlagValues) -> _Asked:
    settings = flags.settings(values, LinearProbeSettings)
    given = {"workdir": (f"{settings.model}/{RUN}",), "dataset": "", "eval_dataset": ""}
    return _Asked(settings, flags.settings(values, ProbeConfig, **given))


def _work(asked: _Asked) -> int:
    from components.linear_probe.executor import REPORT, evaluate

    evaluate(asked.settings, asked.probe)
    with open(f"{asked.settings.evaluation}/{REPORT}") as file:
        print(file.read())
    return 0


if __name__ == "__main__":
    sys.exit(main())
