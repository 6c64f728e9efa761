"""How fast is ingestion? `python -m benchmarks.ingestion [--goals]`: components.data_ingestion, TFDS's own preparation, and a bare loop, in turns.

The same folder of images is read by all: small gray png files, and large jpeg photographs (made of noise that is smoothed, so that they
compress as photographs do). Ours decodes and checks every image; TFDS copies files as they are and checks nothing; the bare loop reads and decodes
in one thread and writes nothing. Whole commands, with the start of Python and TensorFlow, and of Beam and its workers; medians of --rounds
rounds. Files are in the page cache. `--goals` prints each goal as reached or missed, and ends with 1 on a miss: the command as it is by default
against the bare loop, and two threads against one, which is the command on one processor.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from benchmarks.measuring import Checked, print_goals
from sela_tf.reporting.markdown import markdown

ROOT = pathlib.Path(__file__).parent.parent

_TFDS = """
import pathlib, sys
import tensorflow_datasets as tfds

class Folder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, None)), "label": tfds.features.ClassLabel(num_classes=10)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for path in sorted(pathlib.Path(sys.argv[1]).glob("*/*")):
            yield path.name, {"image": path, "label": int(path.parent.name)}

Folder(data_dir=sys.argv[2]).download_and_prepare()
"""
_LOOP = """
import pathlib, sys
import tensorflow as tf
for path in sorted(pathlib.Path(sys.argv[1]).glob("*/*")):
    tf.io.decode_image(path.read_bytes())
"""


def make_folder(directory: pathlib.Path, count: int, side: int, kind: str) -> None:
    """Ten classes of smooth noise."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (directory / str(label)).mkdir(parents=True)
    for i in range(count):
        channels = 1 if kind == "png" else 3
        small = rng.uniform(0, 255, (1, max(2, side // 8), max(2, side // 8), channels)).astype(np.float32)
        pixels = tf.cast(
            tf.image.resize(small, (side, side), method="bicubic")[0] + rng.normal(0, 4, (side, side, channels)), tf.float32
        )
        pixels = tf.saturate_cast(pixels, tf.uint8)
        data = tf.io.encode_png(pixels) if kind == "png" else tf.io.encode_jpeg(pixels, quality=90)
        (directory / str(i % 10) / f"{i:06d}.{kind}").write_bytes(data.numpy())


OURS, ON_ONE, BY_BEAM = (f"components.data_ingestion, {how}" for how in ("default", "one thread", "a process of Beam a core"))
LOOP = "a bare loop that decodes"
_OF_LOOP, _OF_ONE, _LEAST_IMAGES = 0.9, 1.6, 8000
"""Goals: images a second as a share of the loop's, and times those of one thread from so many jpeg on."""


def seconds(command: Sequence[str | pathlib.Path], output: pathlib.Path, *, on_one: bool = False) -> float:
    """Returns the seconds of one run, whose output is removed; perhaps on one processor."""
    start, all_of_them = time.perf_counter(), os.sched_getaffinity(0)
    if on_one:
        os.sched_setaffinity(0, {max(all_of_them)})
    try:
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    finally:
        os.sched_setaffinity(0, all_of_them)
    spent = time.perf_counter() - start
    shutil.rmtree(output, ignore_errors=True)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--goals", action="store_true", help="print each goal as reached or missed, and end with 1 on a miss")
    options = parser.parse_args()
    rows, goals = [], []
    with tempfile.TemporaryDirectory() as name:
        directory, output = pathlib.Path(name), pathlib.Path(name) / "output"
        (directory / "prepare.py").write_text(_TFDS)
        for count, side, kind in ((20_000, 28, "png"), (8_000, 512, "jpeg")):
            images = directory / kind
            make_folder(images, count, side, kind)
            size = sum(path.stat().st_size for path in images.rglob("*.*"))
            ingest = [sys.executable, "-m", "components.data_ingestion", f"--dataset=folder:{images}", f"--examples={output}"]
            arguments = "--beam_pipeline_args=--runner=FnApiRunner,--direct_running_mode=multi_processing,--direct_num_workers=0"
            commands = {
                OURS: ingest,
                ON_ONE: ingest,
                BY_BEAM: [*ingest, arguments],
                "TFDS, which checks nothing": [sys.executable, directory / "prepare.py", images, output],
                LOOP: [sys.executable, "-c", _LOOP, images],
            }
            spent: dict[str, list[float]] = {who: [] for who in commands}
            for _ in range(options.rounds):
                for who, command in commands.items():
                    spent[who].append(seconds(command, output, on_one=who == ON_ONE))
            what = f"{count} {kind} of {side} x {side}, {size / 1e6:.0f} MB"
            medians = {who: statistics.median(values) for who, values in spent.items()}
            for who, values in spent.items():
                spread = f"{min(values):.1f} to {max(values):.1f}"
                rows.append([what, who, f"{medians[who]:.1f}", spread, f"{count / medians[who]:.0f}"])
                print(rows[-1], flush=True)
            goals += checked(what, medians, has_second=kind == "jpeg" and count >= _LEAST_IMAGES)
    print(markdown(["images", "by", "seconds", "rounds", "images/s"], rows))
    if options.goals:
        sys.exit(print_goals(goals))


def checked(what: str, medians: dict[str, float], *, has_second: bool) -> list[Checked]:
    """Returns the goals of a set, by the median seconds of each command."""
    of_loop, of_one = medians[LOOP] / medians[OURS], medians[ON_ONE] / medians[OURS]
    goals = [(f"{what}: at least {_OF_LOOP} of the bare loop's images a second", of_loop >= _OF_LOOP, f"{of_loop:.2f}")]
    if has_second:
        goals.append((f"{what}: at least {_OF_ONE} times those of one thread", of_one >= _OF_ONE, f"{of_one:.2f}"))
    return goals


if __name__ == "__main__":
    main()
