"""The door: python -m sela_tf.export --workdir=RUN --export_dir=DIR"""

from __future__ import annotations

import sys

from absl import flags as absl_flags

from sela_tf import flags
from sela_tf.config import ExportConfig
from sela_tf.door import run_command

_USAGE = """python -m sela_tf.export --workdir=RUN --export_dir=DIR [--setting=value …]

Writes the network of a finished run into DIR/VERSION, for TensorFlow Serving. The settings:
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input or an export that fails its check, 128 + n after signal n."""
    return run_command(
        argv, name="sela_tf.export", usage=_USAGE, define=_define, read=_read, work=_work, stopped="; nothing was written"
    )


def _define(values: absl_flags.FlagValues) -> None:
    flags.define(values, ExportConfig)


def _read(values: absl_flags.FlagValues) -> ExportConfig:
    return flags.settings(values, ExportConfig)


def _work(settings: ExportConfig) -> int:
    from sela_tf.exporter import export_run, summary

    print(summary(export_run(settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
