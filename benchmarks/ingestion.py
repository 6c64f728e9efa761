"""How fast is ingestion? `python -m benchmarks.ingestion`: components.data_ingestion, TFDS's own preparation, and a bare loop, in turns.

The same folder of images is read by all: small gray png files, and large jpeg photographs (made of noise that is smoothed, so that they
compress as photographs do). Ours decodes and checks every image; TFDS copies files as they are and checks nothing; the bare loop reads and decodes
in one thread and writes nothing. Whole commands, with the start of Python and TensorFlow, and of Beam and its workers; medians of --rounds
rounds. Files are in the page cache.
"""

from __future__ import annotations

import argparse
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


def seconds(command: Sequence[str | pathlib.Path], output: pathlib.Path) -> float:
    """Of one run, whose output is removed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    spent = time.perf_counter() - start
    shutil.rmtree(output, ignore_errors=True)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory, output = pathlib.Path(name), pathlib.Path(name) / "output"
        (directory / "prepare.py").write_text(_TFDS)
        for count, side, kind in ((20_000, 28, "png"), (8_000, 512, "jpeg")):
            images = directory / kind
            make_folder(images, count, side, kind)
            size = sum(path.stat().st_size for path in images.rglob("*.*"))
            ingest = [sys.executable, "-m", "components.data_ingestion", f"--dataset=folder:{images}", f"--examples={output}"]
            arguments = "--beam_pipeline_args=--runner=FnApiRunner,--direct_running_mode="
            commands = {
                "components.data_ingestion, a process a core": ingest,
                "components.data_ingestion, one process": [*ingest, f"{arguments}in_memory"],
                "TFDS, which checks nothing": [sys.executable, directory / "prepare.py", images, output],
                "a bare loop that decodes": [sys.executable, "-c", _LOOP, images],
            }
            spent: dict[str, list[float]] = {who: [] for who in commands}
            for _ in range(options.rounds):
                for who, command in commands.items():
                    spent[who].append(seconds(command, output))
            for who, values in spent.items():
                median = statistics.median(values)
                spread = f"{min(values):.1f} to {max(values):.1f}"
                what = f"{count} {kind} of {side} x {side}, {size / 1e6:.0f} MB"
                rows.append([what, who, f"{median:.1f}", spread, f"{count / median:.0f}"])
                print(rows[-1], flush=True)
    print(markdown(["images", "by", "seconds", "rounds", "images/s"], rows))


if __name__ == "__main__":
    main()
