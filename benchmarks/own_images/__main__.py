"""Settings for a stranger's images: `python -m benchmarks.own_images --results=FILE.jsonl`, sets of real images, methods, seeds.

Each row (a set, a method, a name of settings, a seed) is made in a process of its own and appended to the results file; rows that are there
are not made again. `--try` names settings beside the library's defaults. `--table` only prints the table of what is there, `--goals` each
goal as reached or missed. Packages are fetched with `--download` only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks.measuring import environment
from benchmarks.own_images.fetching import MissingPackageError
from benchmarks.own_images.jobs import METHODS, Job, found, read_rows, tried_flags
from benchmarks.own_images.measures import correlations
from benchmarks.own_images.sets import SETS, set_settings
from benchmarks.own_images.table import goals, table

_QUIET = ["--noreport", "--evaluate=none", "--monitor_examples=0"]
"""The harness judges by itself, and the processor time is that of the training alone."""


def make(options: argparse.Namespace, job: Job) -> None:
    """Makes a row that is missing, in a process of its own, and appends it to the results file."""
    rows = read_rows(options.results)
    if found(rows, **job.identity()):
        return
    if job.method != "sela":
        run = found(rows, **{**job.identity(), "method": "sela"})
        if run is None:
            print(f"left out, as it is compared with a run of sela that is not there: {job.identity()}", flush=True)
            return
        # The same image size, clusters, network and views; and for SimCLR the same time.
        job = dataclasses.replace(job, flags=run["flags"], cpu_seconds=run["cpu_seconds"], minutes=0.0)
    with tempfile.TemporaryDirectory() as directory:
        wanted, written = (pathlib.Path(directory) / name for name in ("job.json", "row.json"))
        job = dataclasses.replace(job, workdir=job.workdir or f"{directory}/run")
        wanted.write_text(json.dumps(dataclasses.asdict(job)))
        print(*job.identity().values(), flush=True)
        command = [sys.executable, "-m", "benchmarks.own_images.worker", str(wanted), str(written)]
        log = options.results.with_suffix(".log").open("a")
        with log:
            status = subprocess.run(command, env=environment(options.threads), stdout=log, stderr=log, check=False).returncode
        if status:
            print(f"FAILED with status {status}: see {log.name}", flush=True)
            return
        row = json.loads(written.read_text())
    with options.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print("  ", ", ".join(f"{name} {value:.3f}" for name, value in row["figures"].items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def some(names: tuple[str, ...]) -> dict[str, object]:
        return {"type": lambda text: text.split(","), "default": list(names), "help": f"of {', '.join(names)}; by default all"}

    parser.add_argument("--sets", **some(tuple(SETS)))
    parser.add_argument("--methods", **some(METHODS))
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[0])
    parser.add_argument("--name", default="defaults", help="of the settings that are tried")
    parser.add_argument("--try", dest="tried", default="", help="settings, as num_clusters=64,epochs=100")
    parser.add_argument("--variant", default="", help="another way to train, see variants.py")
    parser.add_argument("--minutes", type=float, default=0.0, help="processor minutes that the epochs are fitted to")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("build/own_images.jsonl"))
    parser.add_argument("--runs_dir", type=pathlib.Path, help="keeps the directories of runs here")
    parser.add_argument("--sets_dir", type=pathlib.Path, default=pathlib.Path("~/.cache/sela_tf_own_images"))
    parser.add_argument("--download", action="store_true", help="fetch packages that are missing")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there")
    parser.add_argument("--correlations", action="store_true", help="print how the measures without classes follow the figures")
    parser.add_argument("--goals", action="store_true", help="print each goal as reached or missed, and end with 1 on a miss")
    options = parser.parse_args()
    unknown = [*sorted({*options.sets} - {*SETS}), *sorted({*options.methods} - {*METHODS})]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    if options.table or options.goals or options.correlations:
        rows = [row for row in read_rows(options.results) if row["set"] in options.sets]
        if options.table:
            print(table(rows))
        if options.correlations:
            print(correlations(rows))
        missed = options.goals and goals([row for row in rows if row["name"] == options.name])
        sys.exit(1 if missed else 0)
    sets_dir = options.sets_dir.expanduser()
    for name in options.sets:
        try:
            settings = set_settings(name, sets_dir, download=options.download)
        except MissingPackageError as error:
            sys.exit(f"{name}: {error}")
        own = [f"--{key}={value}" for key, value in settings.items()]
        for seed in options.seeds:
            for method in METHODS:
                if method in options.methods:
                    flags = [*own, *_QUIET, f"--cache_dir={sets_dir}/cache", *tried_flags(options.tried), f"--seed={seed}"]
                    workdir = f"{options.runs_dir}/{name}-{options.name}-{seed}" if options.runs_dir else ""
                    job = Job(
                        set=name, method=method, name=options.name, seed=seed, flags=flags, workdir=workdir,
                        variant=options.variant, minutes=options.minutes,
                    )  # fmt: skip
                    make(options, job)


if __name__ == "__main__":
    main()
