"""The command python -m components.data_ingestion --dataset=folder:DIR --examples=DIR"""

from __future__ import annotations

import sys

from components.settings import IngestionSettings
from sela_tf.cli.command import Command

_USAGE = """python -m components.data_ingestion --dataset=DATA --examples=DIR [--setting=value …]

Reads and checks every image once, and writes them as shards of tf.train.Example, which --dataset=records:DIR trains on. Flags:
"""


def _work(settings: IngestionSettings) -> int:
    from components.data_ingestion.executor import ingest

    manifest = ingest(settings)
    counts = ", ".join(f"{split['num_examples']} {name}" for name, split in manifest["splits"].items())
    print(f"Examples: {counts}, {manifest['num_rejected']} rejected. Train on them with --dataset=records:{settings.examples}")
    return 0


main = Command(name="components.data_ingestion", usage=_USAGE, settings=(IngestionSettings,), work=_work)

if __name__ == "__main__":
    sys.exit(main())
