"""The command python -m sela_tf.export --workdir=RUN --export_dir=DIR"""

from __future__ import annotations

import sys

from sela_tf.cli.command import Command
from sela_tf.settings.commands import ExportConfig

_USAGE = """python -m sela_tf.export --workdir=RUN --export_dir=DIR [--setting=value …]

Writes the network of a finished run into DIR/VERSION, for TensorFlow Serving. Flags:
"""


def _work(settings: ExportConfig) -> int:
    from sela_tf.commands.export import export_run, summary

    print(summary(export_run(settings)))
    return 0


main = Command(name="sela_tf.export", usage=_USAGE, settings=(ExportConfig,), work=_work)

if __name__ == "__main__":
    sys.exit(main())
