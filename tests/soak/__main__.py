"""Kills and terminates runs at random moments, and compares their files with those of unbroken runs: `make soak`.

A stopped run is called again, by the same command, until it ends; then another begins, until as many stops were made as were asked for.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from crash_points import differences, final_digests
from fixtures import ROOT

_BASE = (
    "--eval_fraction=0.25", "--backbone=resnet8", "--width=4", "--num_heads=2", "--num_clusters=8", "--batch_size=64", "--epochs=6",
    "--num_relabellings=9", "--log_every_steps=4", "--monitor_epochs=1", "--checkpoint_minutes=0.01", "--norotation", "--noreport",
    "--learning_rate=0.05",
)  # fmt: skip
KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("--dataset=digits", *_BASE),
    # A processor without bfloat16 takes twenty times as long for it: fewer images, and fewer steps.
    "bfloat16": ("--dataset=digits", *_BASE, "--mixed_precision=bfloat16", "--eval_fraction=0.75", "--epochs=2"),
    "rotations": ("--dataset=digits", *_BASE, "--rotation", "--epochs=3"),
    "dropout": ("--dataset=digits", *_BASE, "--backbone=alexnet", "--image_size=64", "--width=8", "--batch_size=128", "--epochs=3"),
    "heads in turn": ("--dataset=digits", *_BASE, "--relabel_heads=in_turn", "--label_view=training"),
    "records": ("--dataset=records:{records}", *_BASE),
    "two devices": ("--dataset=digits", *_BASE, "--logical_cpus=2", "--epochs=3"),
    "features": ("--dataset=features:{features}", *_BASE, "--backbone=mlp", "--width=16", "--epochs=12"),
}
"""The flags of each kind of run."""


class Outcome(NamedTuple):
    """Stops of a kind of run, and the files that they changed."""

    kind: str
    kills: int
    terms: int
    runs: int
    """Runs that ended."""
    different: list[str]
    """The files that were not those of the unbroken run."""
    slowest: float
    """Seconds from the slowest SIGTERM to the end of its process."""


def soak(kind: str, flags: list[str], directory: pathlib.Path, *, kills: int, terms: int, seed: int) -> Outcome:
    """Stops runs of a kind at random moments."""
    rng = random.Random(f"{kind} {seed}")
    command = [sys.executable, "-m", "sela_tf.train", *flags]
    began = time.monotonic()
    subprocess.run([*command, f"--workdir={directory}/unbroken"], cwd=ROOT, check=True, capture_output=True)
    whole, unbroken = time.monotonic() - began, final_digests(directory / "unbroken")
    stops = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    rng.shuffle(stops)
    runs, different, slowest = 0, set(), 0.0
    while stops or not runs:
        workdir = directory / f"run{runs}"
        while True:
            process = subprocess.Popen(
                [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            try:
                _, said = process.communicate(timeout=rng.uniform(0, whole) if stops else None)
            except subprocess.TimeoutExpired:
                number, sent = stops.pop(), time.monotonic()
                process.send_signal(number)
                _, said = process.communicate()
                if process.returncode == 0:  # It came too late: the run had ended.
                    stops.append(number)
                    break
                expected = (-number,) if number == signal.SIGKILL else (128 + number, -number)
                if process.returncode not in expected:
                    raise RuntimeError(f"{kind}: status {process.returncode} after {number.name}: {said}") from None
                slowest = max(slowest, time.monotonic() - sent if number == signal.SIGTERM else 0)
            if process.returncode == 0:
                break
            if process.returncode > 0 and process.returncode != 128 + signal.SIGTERM:
                raise RuntimeError(f"{kind}: {said}")
        different |= differences(final_digests(workdir), unbroken)
        shutil.rmtree(workdir)
        runs += 1
    return Outcome(kind, kills, terms, runs, sorted(different), slowest)


def prepare(directory: pathlib.Path) -> dict[str, Any]:
    """Makes the data sets that are no part of the package."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez(directory / "features.npz", features=digits.data.astype(np.float32), classes=digits.target)
    records = directory / "records"
    ingestion = [
        sys.executable,
        "-m",
        "components.data_ingestion",
        "--dataset=digits",
        f"--examples={records}",
        "--eval_fraction=0.25",
    ]
    subprocess.run(ingestion, cwd=ROOT, check=True, capture_output=True)
    return {"features": directory / "features.npz", "records": records}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--kills", type=int, default=40, help="SIGKILLs of each kind")
    parser.add_argument("--terms", type=int, default=10, help="SIGTERMs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as made, concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        directory = pathlib.Path(made)
        places = prepare(directory)
        futures = {}
        for kind in options.kinds:
            place = directory / "runs" / kind.replace(" ", "_")
            place.mkdir(parents=True)
            flags = [flag.format(**places) for flag in KINDS[kind]]
            future = pool.submit(soak, kind, flags, place, kills=options.kills, terms=options.terms, seed=options.seed)
            futures[future] = kind
        for future in concurrent.futures.as_completed(futures):
            if error := future.exception():
                failed = True
                print(f"{futures[future]}: FAILED: {error}", flush=True)
                continue
            done = future.result()
            failed |= bool(done.different)
            print(
                f"{done.kind}: {done.kills} SIGKILLs and {done.terms} SIGTERMs (the slowest took {done.slowest:.1f} s) in {done.runs} runs: "
                + (f"DIFFERENT: {', '.join(done.different)}" if done.different else "all final files are equal"),
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
