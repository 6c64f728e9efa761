"""Prepares small data sets for TFDS, as a user's own would be: `python tests/data/tfds_builders.py DIRECTORY`."""

import sys

import numpy as np
import tensorflow_datasets as tfds


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Images of one grey each, of two classes."""

    VERSION = tfds.core.Version("1.2.0")
    SPLITS = {"train": (30, 6), "test": (10, 6)}
    CLASSES = ["a", "b"]

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=self.CLASSES)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(*shape) for name, shape in self.SPLITS.items()}

    def _generate_examples(self, count, size):
        for i in range(count):
            yield i, {"image": np.full((size or i + 2, size or 4, 3), i, np.uint8), "label": i % 2}


class Many(Shapes):
    """Three images of three sizes, without a test split."""

    SPLITS = {"train": (3, 0)}


class Boxes(Shapes):
    """Images of noise, those of the second class brighter."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": (30, (6,)), "test": (10, (6,))}
    CLASSES = ["dark", "bright"]

    def _generate_examples(self, count, sizes):
        random = np.random.default_rng(count)
        for i in range(count):
            side = sizes[i % len(sizes)]
            image = random.integers(0, 128, (side, side, 3), dtype=np.uint8) + np.uint8(120 * (i % 2))
            yield i, {"image": image, "label": i % 2}


class Sizes(Boxes):
    """Images of noise of four sizes, without a test split."""

    SPLITS = {"train": (40, (6, 7, 8, 9))}


if __name__ == "__main__":
    for builder in (Shapes, Many, Boxes, Sizes):
        builder(data_dir=sys.argv[1]).download_and_prepare()
