"""The command python -m components.linear_probe --model=DIR --examples=DIR --evaluation=DIR --blessing=DIR"""

from __future__ import annotations

import sys

from absl import flags as absl_flags

from components.settings import FROM_EXAMPLES, RUN, LinearProbeSettings
from sela_tf.cli import flags
from sela_tf.cli.command import Command
from sela_tf.settings.commands import ProbeConfig

_USAGE = """python -m components.linear_probe --model=DIR --examples=DIR --evaluation=DIR --blessing=DIR [--setting=value …]

Linear probes, kNN and clustering of a model that components.self_labelling wrote, and a verdict. Flags:
"""


def _define(values: absl_flags.FlagValues) -> None:
    flags.define(values, LinearProbeSettings)
    flags.define(values, ProbeConfig, leave_out=FROM_EXAMPLES)


def _read(values: absl_flags.FlagValues) -> tuple[LinearProbeSettings, ProbeConfig]:
    settings = flags.settings(values, LinearProbeSettings)
    given = {"workdir": (f"{settings.model}/{RUN}",), "dataset": "", "eval_dataset": "", "other_run": ""}
    return settings, flags.settings(values, ProbeConfig, **given)


def _work(settings: LinearProbeSettings, probe: ProbeConfig) -> int:
    from components.linear_probe.executor import REPORT, evaluate

    evaluate(settings, probe)
    with open(f"{settings.evaluation}/{REPORT}") as file:
        print(file.read())
    return 0


main = Command(
    name="components.linear_probe",
    usage=_USAGE,
    settings=(LinearProbeSettings, ProbeConfig),
    work=_work,
    define=_define,
    read=_read,
)

if __name__ == "__main__":
    sys.exit(main())
