"""Seen to learn: `python -m benchmarks.experiments`, each row of `experiment_rows.py` a training run with its probes, over seeds.

A finished row is kept as docs/results/rows/NAME-SEED.json and not run again; the tables of docs/results.md are made of these files.
`--again` repeats a row and says whether it lies within the interval of those that are kept. Runs go to build/experiments; a row whose run is
finished there is only probed and written down.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
from absl import flags as absl_flags

from benchmarks.experiment_rows import ROWS_OF, SEEDS, Peer, Row
from benchmarks.experiment_tables import ROWS, figures, kept, write_page
from sela_tf.cli import flags
from sela_tf.data.sources import load_source
from sela_tf.reporting.probe_tables import interval, mean_and_interval
from sela_tf.settings.commands import ProbeConfig

ROOT = pathlib.Path(__file__).parent.parent
RUNS = ROOT / "build" / "experiments"
_MADE_BY = "made_by.json"
_OF_RELABELLING = (
    "step", "head", "objective_before", "objective_after", "changed", "information", "smallest_cluster", "largest_cluster",
    "num_iterations", "nmi",
)  # fmt: skip


def call(*command: str) -> None:
    """In a process of its own."""
    subprocess.run([sys.executable, "-m", *command], check=True, cwd=ROOT, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})


def train(row: Row, workdir: pathlib.Path, seed: int) -> None:
    """The whole of a run, unless it is there, and what it was made by."""
    if (workdir / "results.json").exists():
        return
    settings = [f"--flagfile={ROOT}/configs/{row.config}.cfg", f"--workdir={workdir}", f"--seed={seed}", "--noreport", *row.changes]
    if row.labels_of:
        source = RUNS / f"{row.labels_of}-{seed}"
        train(_row(row.labels_of), source, seed)
        settings.append(f"--labels_from={source}/labels.npz")
    if row.held_out:
        settings.append(f"--dataset=npz:{held_out_images()}")
    call(*row.program, *settings)
    (workdir / _MADE_BY).write_text(json.dumps(made_by()))


def made_by() -> dict[str, str]:
    """Revision and kind of machine: other processors round sums otherwise, and a training makes much of it."""
    git = ["git", "rev-parse", "HEAD"]
    revision = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    described = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in described if line.startswith("model name")]
    return {"revision": revision, "processor": names[0] if names else platform.machine()}


def held_out_images() -> pathlib.Path:
    """A file of Fashion-MNIST's training images, made if it is missing: the last 10,000 take the place of the test images."""
    file = RUNS / "held_out.npz"
    if not file.exists():
        train_set = load_source("idx:/usr/share/datasets/fashion-mnist").train
        images, classes = train_set.images, train_set.classes
        assert images is not None
        assert classes is not None
        parts = {
            "images": images[:50_000],
            "classes": classes[:50_000],
            "eval_images": images[50_000:],
            "eval_classes": classes[50_000:],
        }
        RUNS.mkdir(parents=True, exist_ok=True)
        np.savez(file, **parts)
    return file


def probe(row: Row, workdir: pathlib.Path) -> dict[str, Any]:
    """What probes.json holds; anew where it is missing, or is of other settings."""
    file, arguments = workdir / "probes.json", [f"--workdir={workdir}", *row.probe]
    if file.exists():
        found = json.loads(file.read_text())
        values = absl_flags.FlagValues()
        flags.define(values, ProbeConfig)
        flags.parse(values, ["probe", *arguments])
        wanted, default = flags.settings(values, ProbeConfig), ProbeConfig(workdir=(str(workdir),))
        # an earlier version of sela_tf may not have had every setting; lists and tuples are one in JSON
        had, asked = ({**dataclasses.asdict(default), **which} for which in (found["settings"], dataclasses.asdict(wanted)))
        if json.dumps(had) == json.dumps(asked):
            return found
    call("sela_tf.probe", *arguments)
    return json.loads(file.read_text())


def run(name: str, seed: int, *, again: bool = False) -> dict[str, Any]:
    """Trains and probes; what docs/results/rows keeps. `again`: in a directory of its own, anew, and the trained network only."""
    described, workdir = ROWS_OF[name], RUNS / (f"{name}-{seed}" + "-again" * again)
    if again:
        shutil.rmtree(workdir, ignore_errors=True)
    if isinstance(described, Peer):
        workdir.mkdir(parents=True, exist_ok=True)
        output = workdir / "row.json"
        if not output.exists():
            call("benchmarks.simclr", f"--output={output}", f"--seed={seed}", *described.arguments)
            (workdir / _MADE_BY).write_text(json.dumps(made_by()))
        return {
            "command": _command(name, seed),
            **json.loads((workdir / _MADE_BY).read_text()),
            **json.loads(output.read_text()),
        }
    if again:
        described = described._replace(probe=[argument for argument in described.probe if argument != "--untrained"])
    train(described, workdir, seed)
    probes = probe(described, workdir)
    results = json.loads((workdir / "results.json").read_text())
    metrics, timings = (
        [json.loads(line) for line in (workdir / file).read_text().splitlines()] for file in ("metrics.jsonl", "timings.jsonl")
    )
    return {
        "command": _command(name, seed),
        "changes": [f"--flagfile=configs/{described.config}.cfg", *described.changes],
        "program": " ".join(described.program),
        "labels_of": described.labels_of,
        **json.loads((workdir / _MADE_BY).read_text()),
        "trained": results["trained"],
        "untrained": results["untrained"],
        "training_labels": results["training_labels"],
        "probes": {column: probes[column] for column in ("trained", "untrained") if column in probes},
        "protocol": probes["protocol"],
        "course": course(metrics, timings, results["data"]["num_training_images"]),
        "relabellings": [{key: line[key] for key in _OF_RELABELLING} for line in metrics if line["kind"] == "relabel"],
        "losses": [[line["step"], line["loss"]] for line in metrics if line["kind"] == "train"],
    }


def course(metrics: list[dict[str, Any]], timings: list[dict[str, Any]], num_images: int) -> list[dict[str, float]]:
    """Of each epoch kNN and loss, and the seconds of training and relabelling until its end, without starting and looking."""
    rates = {line["epoch"]: line["images_per_second"] for line in timings if line["kind"] == "epoch"}
    relabelling = [(line["step"], line["seconds"]) for line in timings if line["kind"] == "relabel"]
    found, spent = [], 0.0
    for epoch in (line for line in metrics if line["kind"] == "epoch"):
        spent += num_images / rates[epoch["epoch"]]
        until = spent + sum(seconds for step, seconds in relabelling if step < epoch["step"])
        found.append({"epoch": epoch["epoch"] + 1, "knn": epoch["knn"], "loss": epoch["loss"], "training_seconds": until})
    return found


def compare(name: str, seed: int) -> None:
    """Repeats a row, and says of each figure whether it lies within the interval or the range of those that are kept."""
    before = [figures(row, "trained") for row in kept(name).values()]
    if not before:
        print(f"{name}: no row is kept to compare with; run it without --again")
        return
    for key, value in figures(run(name, seed, again=True), "trained").items():
        values = [row[key] for row in before if key in row]
        if not values or key == "training, s":
            continue
        inside = abs(value - np.mean(values)) <= np.nanmax([interval(values), np.ptp(values)])
        print(f"{name}, {key}: {value:.3f}, kept {mean_and_interval(values)}: {'within' if inside else 'OUTSIDE'}")


def _row(name: str) -> Row:
    row = ROWS_OF[name]
    assert isinstance(row, Row)
    return row


def _command(name: str, seed: int) -> str:
    return f"python -m benchmarks.experiments {name} --seeds={seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS_OF)}; by default all")
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=list(SEEDS))
    parser.add_argument("--again", action="store_true", help="repeat rows that are kept, and compare")
    parser.add_argument("--page", action="store_true", help="only write the tables anew")
    options = parser.parse_args()
    unknown = set(options.rows) - set(ROWS_OF)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    names = [] if options.page else options.rows or list(ROWS_OF)
    peers = [name for name in names if isinstance(ROWS_OF[name], Peer)]
    if peers and importlib.util.find_spec("torch") is None:
        parser.error(f"{', '.join(peers)} need PyTorch: pip install 'sela-tf[bench]'")
    ROWS.mkdir(parents=True, exist_ok=True)
    for name in names:
        for seed in options.seeds:
            file = ROWS / f"{name}-{seed}.json"
            if options.again:
                compare(name, seed)
            elif not file.exists():
                file.write_text(json.dumps(run(name, seed), indent=1) + "\n")
    write_page()


if __name__ == "__main__":
    main()
