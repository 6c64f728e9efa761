"""A profile of three trainings, by what relabelling costs in them: `python -m benchmarks.relabelling [--goals]`.

The runs are as a user would make them: Fashion-MNIST with `configs/fashion_mnist_best.cfg` (60,000 images, K = 128, one head); heads on vectors,
N = 100,000 and K = 3000, with two epochs between relabellings; and a folder of colour images with the settings that are chosen for it (the
emoji of benchmarks.own_images, if they lie on this machine; without them the run is left out). Each trains in a process of its own.

Parts are wall-clock seconds of the training, from its first label to its last, evaluation and report apart: `steps` (views included),
`network` (label passes through the network), `transport` (also those at a larger lam, from which labels are rounded), `rounding`, `figures`
(the metrics of each relabelling) and `rest` (monitors, checkpoints, the start). The share's denominator is the training less `network`, since
what a label pass costs is the network's matter. `--goals` prints the goal of each run as reached or missed, and ends with 1 on a miss.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest.mock
from typing import Any

import numpy as np

from benchmarks.large_run import write_vectors
from benchmarks.measuring import Checked, print_goals
from sela_tf.reporting.markdown import markdown

ROOT = pathlib.Path(__file__).parent.parent
PARTS = ("steps", "network", "transport", "rounding", "figures", "rest")
RUNS = ("fashion_mnist_best", "vectors", "folder")
_MOST_SHARE = 0.05


class Parts:
    """Seconds that functions take within the whole; those of a function within another count for the inner one alone."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.whole = 0.0
        self._inner: list[float] = []

    def time(self, owner: Any, name: str, part: str) -> None:
        """Replaces the function `name` of a module or class by one whose time is added to `part`.

        The time of a function of the part "whole" is added to the whole; what it does itself is "rest".
        """
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if part != "whole" and not self._inner:
                return function(*args, **kwargs)  # as when the time of the run is estimated before it begins
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - start
                self.seconds["rest" if part == "whole" else part] += seconds - self._inner.pop()
                if self._inner:
                    self._inner[-1] += seconds
                else:
                    self.whole += seconds

        setattr(owner, name, timed)


def train(flags: list[str], output: pathlib.Path) -> None:
    """Trains with these flags in this process and writes the parts."""
    import sela_tf.self_labelling.callback as callback
    import sela_tf.training.progress as progress
    import sela_tf.training.run as run
    import sela_tf.transport.assignment as assignment
    from sela_tf.train import main as door

    parts = Parts()
    for owner, name, part in (
        (run, "_train", "whole"),
        (run, "finish", "whole"),
        (callback.SelfLabelling, "_head_inputs", "network"),
        (callback, "compute_labels", "figures"),
        (assignment, "sinkhorn", "transport"),
        (assignment, "_rounding_potentials", "rounding"),
        (assignment, "balanced_labels", "rounding"),
    ):
        parts.time(owner, name, part)
    end_epoch = progress.Progress.on_epoch_end

    def on_epoch_end(self: progress.Progress, *args: Any) -> None:
        steps = self.clock.waiting + self.clock.stepping
        parts.seconds["steps"] += steps
        parts.seconds["rest"] -= steps
        end_epoch(self, *args)

    # The command makes its Progress itself; the hook is gone when it ends, so that nothing else is timed by it.
    with unittest.mock.patch.object(progress.Progress, "on_epoch_end", on_epoch_end):
        status = door([sys.argv[0], *flags])
    workdir = pathlib.Path(next(flag.split("=", 1)[1] for flag in flags if flag.startswith("--workdir=")))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    passes = [row["num_iterations"] for row in rows if row.get("kind") == "relabel"]
    output.write_text(json.dumps({"seconds": parts.seconds, "whole": parts.whole, "passes": passes}))
    sys.exit(status)


def flags_of(name: str, folder: str, directory: pathlib.Path) -> list[str]:
    """The flags of a run; its images are made in `directory` where they are not there."""
    if name == "fashion_mnist_best":
        return [f"--flagfile={ROOT}/configs/fashion_mnist_best.cfg"]
    if name == "folder":
        return [f"--dataset=folder:{folder}"]
    file = directory / "vectors.npz"
    write_vectors(file, 100_000)
    return [
        f"--dataset=features:{file}", "--backbone=identity", "--num_heads=1", "--num_clusters=3000", "--batch_size=256",
        "--epochs=10", "--num_relabellings=5", "--relabel_spacing=linear", "--learning_rate=0.1", "--lr_schedule=cosine",
    ]  # fmt: skip


def share_of_labels(found: dict[str, Any]) -> float:
    """Transport and rounding, as a share of the training without its label passes through the network."""
    seconds = found["seconds"]
    return (seconds["transport"] + seconds["rounding"]) / (found["whole"] - seconds["network"])


def goals(runs: dict[str, dict[str, Any]]) -> list[Checked]:
    checked = []
    for name, found in runs.items():
        share = share_of_labels(found)
        checked.append((f"{name}: transport and rounding at most {_MOST_SHARE:.0%}", share <= _MOST_SHARE, f"{share:.1%}"))
    return checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=lambda text: text.split(","), default=list(RUNS), help=f"of {', '.join(RUNS)}")
    parser.add_argument("--folder", default=str(pathlib.Path("~/.cache/sela_tf_own_images/emoji").expanduser()))
    parser.add_argument("--goals", action="store_true", help="print each goal as reached or missed, and end with 1 on a miss")
    parser.add_argument(
        "--output", type=pathlib.Path, help="of one run, made in this process; further flags are those of the training"
    )
    options, rest = parser.parse_known_args()
    if options.output:
        train(rest, options.output)
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    runs: dict[str, dict[str, Any]] = {}
    for name in options.runs:
        if name == "folder" and not pathlib.Path(options.folder).is_dir():
            print(f"left out: folder, as {options.folder} is not there (--folder=DIR)", flush=True)
            continue
        with tempfile.TemporaryDirectory() as directory:
            output, place = pathlib.Path(directory) / "parts.json", pathlib.Path(directory)
            flags = [*flags_of(name, options.folder, place), f"--workdir={place}/run", "--evaluate=none", "--noreport"]
            command = [sys.executable, "-m", "benchmarks.relabelling", f"--output={output}", *flags]
            subprocess.run(command, cwd=ROOT, check=True)
            runs[name] = json.loads(output.read_text())
        print(name, runs[name], flush=True)
    header = ["run", "training, s", *(f"{part}, s" for part in PARTS), "transport and rounding", "passes of a solve"]
    rows = []
    for name, found in runs.items():
        passes = f"{np.median(found['passes']):g} ({min(found['passes'])} to {max(found['passes'])})"
        seconds = [f"{found['seconds'][part]:.1f}" for part in PARTS]
        rows.append([name, f"{found['whole']:.0f}", *seconds, f"{share_of_labels(found):.1%}", passes])
    print(markdown(header, rows))
    if options.goals:
        sys.exit(print_goals(goals(runs)))


if __name__ == "__main__":
    main()
