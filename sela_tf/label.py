"""The command python -m sela_tf.label --workdir=RUN --dataset=folder:DIR --output=labels.parquet"""

from __future__ import annotations

import sys

from sela_tf.cli.command import Command
from sela_tf.settings.commands import LabelConfig

_USAGE = """python -m sela_tf.label --workdir=RUN --output=FILE [--dataset=DATA] [--setting=value …]

Labels images with the network of a finished run: of each its clusters, how sure the network is, and its embedding. Flags:
"""


def _work(settings: LabelConfig) -> int:
    from sela_tf.commands.label import label_run

    print(label_run(settings))
    return 0


main = Command(name="sela_tf.label", usage=_USAGE, settings=(LabelConfig,), work=_work)

if __name__ == "__main__":
    sys.exit(main())
