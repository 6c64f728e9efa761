"""The door: python -m sela_tf.export --workdir=RUN --export_dir=DIR"""

from __future__ import annotations

import sys

from sela_tf.cli.command import run_settings_command
from sela_tf.settings.commands import ExportConfig

_USAGE = """python -m sela_tf.export --workdir=RUN --export_dir=DIR [--setting=value …]

Writes the network of a finished run into DIR/VERSION, for TensorFlow Serving. The settings:
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input or an export that fails its check, 128 + n after signal n."""
    return run_settings_command(argv, name="sela_tf.export", usage=_USAGE, kind=ExportConfig, work=_work)


def _work(settings: ExportConfig) -> int:
    from sela_tf.commands.export import export_run, summary

    print(summary(export_run(settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
