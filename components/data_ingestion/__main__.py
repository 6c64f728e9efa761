"""The door: python -m components.data_ingestion --dataset=folder:DIR --examples=DIR"""

from __future__ import annotations

import sys

from components.settings import IngestionSettings
from sela_tf.cli.command import run_settings_command

_USAGE = """python -m components.data_ingestion --dataset=DATA --examples=DIR [--setting=value …]

Reads and checks every image once, by Apache Beam, and writes them as shards of tf.train.Example, which --dataset=records:DIR trains on. The
settings:
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input, 128 + n after signal n."""
    return run_settings_command(argv, name="components.data_ingestion", usage=_USAGE, kind=IngestionSettings, work=_work)


def _work(settings: IngestionSettings) -> int:
    from components.data_ingestion.executor import ingest

    manifest = ingest(settings)
    counts = ", ".join(f"{split['num_examples']} {name}" for name, split in manifest["splits"].items())
    print(f"Examples: {counts}, {manifest['num_rejected']} rejected. Train on them with --dataset=records:{settings.examples}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
