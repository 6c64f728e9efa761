"""The command python -m sela_tf.probe --workdir=RUN"""

from __future__ import annotations

import sys
import textwrap

from sela_tf.cli.command import Command
from sela_tf.settings.commands import ProbeConfig

_USAGE = """python -m sela_tf.probe --workdir=RUN[,RUN …] [--setting=value …]

Linear probes after every stage of a trained network, and kNN; with --other_run, the agreement of two runs. Writes probes.json into RUN. Flags:
"""


def _work(settings: ProbeConfig) -> int:
    from sela_tf.commands.probe import check_same_settings, probe_run
    from sela_tf.reporting.probe_tables import probes_table

    check_same_settings(settings.workdir)
    results = [probe_run(settings, workdir) for workdir in settings.workdir]
    print(f"\n{probes_table(results)}\n\n{textwrap.fill(results[0]['protocol'], 100)}")
    if "trained" not in results[0]:
        print("No class labels, so no probes: the clusters of two runs were compared.")
    elif len(results) > 1:
        print(f"±: Student's 95 % interval of the mean over {len(results)} seeds.")
    else:
        print("One run, so no interval over seeds: name several with --workdir=RUN,RUN.")
    print(f"Written to probes.json in {', '.join(settings.workdir)}.")
    return 0


main = Command(name="sela_tf.probe", usage=_USAGE, settings=(ProbeConfig,), work=_work)

if __name__ == "__main__":
    sys.exit(main())
