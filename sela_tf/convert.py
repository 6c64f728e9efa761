"""The command python -m sela_tf.convert --input=DIR --output=DIR"""

from __future__ import annotations

import sys

from sela_tf.cli.command import Command
from sela_tf.settings.commands import ConvertConfig

_USAGE = """python -m sela_tf.convert --input=DIR --output=DIR [--setting=value …]

Writes a folder of images that training reads: readable files are copied, others (tiff, psd, heic, palettes …) become png. Flags:
"""


def _work(settings: ConvertConfig) -> int:
    from sela_tf.commands.convert import convert_folder

    print(convert_folder(settings))
    return 0


main = Command(
    name="sela_tf.convert",
    usage=_USAGE,
    settings=(ConvertConfig,),
    work=_work,
    stopped="; the same command continues",
)

if __name__ == "__main__":
    sys.exit(main())
