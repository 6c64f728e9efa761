"""Two short runs on real images and their labels.parquet, for tests/atlas/look.py.

    python tests/atlas/label_runs.py DIR

DIR/digits.parquet is of images in memory, DIR/photos.parquet of a folder of png: pieces of the two photos that scikit-learn brings.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

from PIL import Image
from sklearn.datasets import load_sample_images


def main(out: pathlib.Path) -> None:
    photos = out / "photos"
    for pixels, name in zip(load_sample_images().images, ("temple", "flower"), strict=True):
        (photos / name).mkdir(parents=True, exist_ok=True)
        for top in range(0, pixels.shape[0] - 64, 32):
            for left in range(0, pixels.shape[1] - 64, 32):
                piece = Image.fromarray(pixels[top : top + 64, left : left + 64])
                piece.save(photos / name / f"{top:03d}_{left:03d}.png")
    small = [
        "--backbone=resnet8",
        "--num_heads=1",
        "--num_clusters=16",
        "--num_relabellings=2",
        "--epochs=2",
        "--evaluate=none",
    ]
    for name, dataset in (("digits", "digits"), ("photos", f"folder:{photos}")):
        run = f"--workdir={out / 'runs' / name}"
        for command in (
            ["sela_tf.train", run, f"--dataset={dataset}", "--noreport", *small],
            ["sela_tf.label", run, f"--output={out / name}.parquet"],
        ):
            subprocess.run([sys.executable, "-m", *command], check=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
