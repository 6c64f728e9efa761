"""Seen to learn: `python -m benchmarks.experiments`, each row a training run with its probes, over seeds.

A finished row is kept as docs/results/rows/NAME-SEED.json and not run again; the tables of docs/results.md are made of these files.
`--again` repeats a row and says whether it lies within the interval of those that are kept. Runs go to build/experiments.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sela_tf.evaluation.markdown import markdown
from sela_tf.prober import interval, mean_and_interval

ROOT = pathlib.Path(__file__).parent.parent
RUNS, ROWS, PAGE = ROOT / "build" / "experiments", ROOT / "docs" / "results" / "rows", ROOT / "docs" / "results.md"
SEEDS = (0, 1, 2)


class Row(NamedTuple):
    """A config and what departs from it."""

    config: str
    changes: Sequence[str]
    probe: Sequence[str] = ("--stages=embedding",)
    labels_of: str = ""
    """The row whose run, of the same seed, gives the labels."""


_SHORT = ("--epochs=4", "--num_relabellings=8")
_FIXED = ("--num_relabellings=0",)
ROWS_OF: dict[str, Row] = {
    "resnet8": Row("fashion_mnist", _SHORT),
    "resnet8_10_heads": Row("fashion_mnist_128x10", _SHORT),
    "resnet8_bfloat16": Row("fashion_mnist", (*_SHORT, "--mixed_precision=bfloat16")),
    "resnet18": Row("fashion_mnist", (*_SHORT, "--backbone=resnet18", "--width=32")),
    "resnet20": Row("fashion_mnist", (*_SHORT, "--backbone=resnet20")),
    "preact_resnet18": Row("fashion_mnist", (*_SHORT, "--backbone=preact_resnet18", "--width=32")),
    "mobilenet": Row("fashion_mnist", (*_SHORT, "--backbone=applications:MobileNet", "--image_size=32")),
    "alexnet": Row(
        "fashion_mnist",
        (*_SHORT, "--backbone=alexnet", "--width=24", "--image_size=64", "--hidden_units=0", "--learning_rate=0.05"),
        ("--stages=conv1,conv2,conv3,conv4,conv5,embedding", "--values=384"),
    ),
    "resnet8_rotation": Row("fashion_mnist", ("--epochs=2", *_FIXED, "--rotation"), labels_of="resnet8"),
    "resnet8_same_labels": Row("fashion_mnist", ("--epochs=2", *_FIXED), labels_of="resnet8"),
    "resnet8_to_resnet20": Row("fashion_mnist", ("--epochs=3", *_FIXED, "--backbone=resnet20"), labels_of="resnet8"),
    "resnet8_to_resnet18": Row("fashion_mnist", ("--epochs=4", *_FIXED, "--backbone=resnet18", "--width=32"), labels_of="resnet8"),
}
TABLES: dict[str, Sequence[str]] = {
    "networks": ("resnet8", "resnet8_10_heads", "resnet20", "resnet18", "preact_resnet18", "mobilenet"),
    "precision": ("resnet8", "resnet8_bfloat16"),
    "alexnet": ("alexnet",),
    "labels": ("resnet8", "resnet8_same_labels", "resnet8_rotation"),
    "transfer": ("resnet8", "resnet20", "resnet8_to_resnet20", "resnet18", "resnet8_to_resnet18"),
}


def command(row: Row, workdir: pathlib.Path, seed: int) -> list[str]:
    """Of the training."""
    arguments = [f"--flagfile={ROOT}/configs/{row.config}.cfg", f"--workdir={workdir}", f"--seed={seed}", *row.changes]
    if row.labels_of:
        arguments.append(f"--labels_from={RUNS}/{row.labels_of}-{seed}/labels.npz")
    return [sys.executable, "-m", "sela_tf.train", *arguments]


def run(name: str, seed: int, *, again: bool = False) -> dict[str, Any]:
    """Trains and probes; what docs/results/rows keeps. `again`: in a directory of its own, anew."""
    row, workdir = ROWS_OF[name], RUNS / (f"{name}-{seed}" + "-again" * again)
    if again:
        shutil.rmtree(workdir, ignore_errors=True)
    if row.labels_of and not (RUNS / f"{row.labels_of}-{seed}" / "labels.npz").exists():
        run(row.labels_of, seed)
    start = time.perf_counter()
    subprocess.run(command(row, workdir, seed), check=True, cwd=ROOT)
    seconds = time.perf_counter() - start
    probe = [sys.executable, "-m", "sela_tf.probe", f"--workdir={workdir}", "--untrained", *row.probe]
    subprocess.run(probe, check=True, cwd=ROOT)
    results, probes = (json.loads((workdir / file).read_text()) for file in ("results.json", "probes.json"))
    metrics, timings = (
        [json.loads(line) for line in (workdir / file).read_text().splitlines()] for file in ("metrics.jsonl", "timings.jsonl")
    )
    epochs = [line for line in metrics if line["kind"] == "epoch"]
    rates = {line["epoch"]: line["images_per_second"] for line in timings if line["kind"] == "epoch"}
    relabelling = {line["step"]: 0.0 for line in timings if line["kind"] == "relabel"}
    for line in timings:
        if line["kind"] == "relabel":
            relabelling[line["step"]] += line["seconds"]
    num_images = results["data"]["num_training_images"]
    course, spent = [], 0.0
    for epoch in epochs:
        spent += num_images / rates[epoch["epoch"]]
        until = spent + sum(seconds for step, seconds in relabelling.items() if step < epoch["step"])
        course.append({"epoch": epoch["epoch"] + 1, "knn": epoch["knn"], "loss": epoch["loss"], "training_seconds": until})
    return {
        "command": f"python -m benchmarks.experiments {name} --seeds={seed}",
        "changes": [f"--flagfile=configs/{row.config}.cfg", *row.changes],
        "labels_of": row.labels_of,
        "trained": results["trained"],
        "untrained": results["untrained"],
        "probes": {column: probes[column] for column in ("trained", "untrained")},
        "protocol": probes["protocol"],
        "course": course,
        "seconds": seconds,
        "revision": subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
    }


def kept(name: str) -> dict[int, dict[str, Any]]:
    """The finished rows by seed."""
    files = {seed: ROWS / f"{name}-{seed}.json" for seed in SEEDS}
    return {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}


def figures(row: dict[str, Any], column: str) -> dict[str, float]:
    """All numbers of one network that tables show; of several heads the mean."""
    found = {f"kNN, k = {k}": value for k, value in row["probes"][column]["knn"].items()}
    found |= {f"linear, {stage}": value for stage, value in row["probes"][column]["linear_probe"].items()}
    return found | {name.upper(): float(np.mean(row[column][name])) for name in ("nmi", "ami", "ari")}


def table(name: str) -> str:
    """Of docs/results.md, from the rows that are there."""
    lines = []
    for row in TABLES[name]:
        rows = list(kept(row).values())
        for column in ("trained", "untrained") if rows else ():
            numbers = [figures(one, column) for one in rows]
            cells = {key: mean_and_interval([one[key] for one in numbers]) for key in numbers[0]}
            seconds = f"{np.mean([one['seconds'] for one in rows]):.0f}" if column == "trained" else ""
            lines.append({"row": f"{row}, {column}", "seeds": str(len(rows)), **cells, "run, s": seconds})
    if name == "transfer":
        return transfer_table()
    if not lines:
        return "not run yet"
    header = list(dict.fromkeys(key for line in lines for key in line))
    return markdown(header, [[line.get(key, "") for key in header] for line in lines])


def transfer_table() -> str:
    """When each network's kNN, as the monitor has it, reaches the source's last."""
    lines = []
    for row in TABLES["transfer"]:
        sources = kept("resnet8")
        for seed, one in kept(row).items():
            if seed not in sources:
                continue
            goal = sources[seed]["course"][-1]["knn"]
            reached = next((point for point in one["course"] if point["knn"] >= goal), None)
            at = [str(reached["epoch"]), f"{reached['training_seconds']:.0f}"] if reached else ["not reached", ""]
            course = " ".join(f"{point['knn']:.3f}" for point in one["course"])
            lines.append([row, str(seed), course, f"{goal:.3f}", *at])
    return markdown(
        ["row", "seed", "kNN after each epoch", "the source's last", "epochs to it", "seconds of training to it"], lines
    )


def write_page() -> None:
    """Puts the tables between their markers."""
    text = PAGE.read_text()
    for name in TABLES:
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        made = table(name)
        text = pattern.sub(lambda match, made=made: f"{match[1]}{made}\n{match[2]}", text)
    PAGE.write_text(text)


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
    ROWS.mkdir(parents=True, exist_ok=True)
    for name in [] if options.page else options.rows or list(ROWS_OF):
        for seed in options.seeds:
            file = ROWS / f"{name}-{seed}.json"
            if options.again:
                before = [figures(row, "trained") for row in kept(name).values()]
                for key, value in figures(run(name, seed, again=True), "trained").items():
                    values = [row[key] for row in before]
                    inside = abs(value - np.mean(values)) <= np.nanmax([interval(values), np.ptp(values)])
                    print(f"{name}, {key}: {value:.3f}, kept {mean_and_interval(values)}: {'within' if inside else 'OUTSIDE'}")
            elif not file.exists():
                file.write_text(json.dumps(run(name, seed), indent=1) + "\n")
    if PAGE.exists():
        write_page()


if __name__ == "__main__":
    main()
