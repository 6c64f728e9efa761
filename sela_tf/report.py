"""The command python -m sela_tf.report --workdir=RUN"""

from __future__ import annotations

import sys

from sela_tf.cli.command import Command
from sela_tf.settings.commands import ReportConfig

_USAGE = """python -m sela_tf.report --workdir=RUN [--names=names.csv] [--setting=value …]

Draws the report of a finished run anew: report.html, a page to look through its clusters and to name them; report.png and galleries/. With
--names, the run gets the names of its clusters. Flags:
"""


def _work(settings: ReportConfig) -> int:
    from sela_tf.commands.report import report_run

    print(report_run(settings))
    return 0


main = Command(name="sela_tf.report", usage=_USAGE, settings=(ReportConfig,), work=_work)

if __name__ == "__main__":
    sys.exit(main())
