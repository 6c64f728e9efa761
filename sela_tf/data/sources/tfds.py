"""The source of TFDS data sets: their splits, images and class labels, with examples in a fixed order."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sela_tf.compat.autotuning import untuned
from sela_tf.data.classes import class_labels
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import EVAL_NAMES, TRAIN_NAMES, ImageSet, SourceName, Splits
from sela_tf.data.sources.arrays import INGEST, array_set, check_memory
from sela_tf.data.stores import Unread


class TfdsSource(NamedTuple):
    """A prepared TFDS data set."""

    builder: Any
    """The tfds.core.DatasetBuilder."""
    image_key: str
    """The name of the feature that holds the image."""
    class_key: str | None
    """The name of the feature that holds the class label; None if there is none."""
    train: str
    """The name of the split to train on."""
    eval: str | None
    """The name of the split to evaluate on; None if there is none."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, by number; None if there are no class labels."""
        return None if self.class_key is None else tuple(self.builder.info.features[self.class_key].names)

    def num_examples(self, split: str) -> int:
        """Returns the number of examples of a split, as TFDS has counted them."""
        return int(self.builder.info.splits[split].num_examples)

    def examples(self, split: str, *, encoded: bool = False) -> Iterator[tuple[Any, int]]:
        """Yields the image and class label of each example, in the order of TFDS' files.

        Args:
            split: A split of TFDS or a part of one, such as "train[100:200]".
            encoded: Yields the image's file as bytes, instead of its pixels, uint8 `[H, W, C]`.

        Yields:
            (image, class label); the label is -1 if there are none.
        """
        import tensorflow_datasets as tfds

        # Files are read one at a time, so that an example's row does not depend on timing.
        options = tfds.ReadConfig(interleave_cycle_length=1)
        decoders = {self.image_key: tfds.decode.SkipDecoding()} if encoded else None
        examples = self.builder.as_dataset(split=split, shuffle_files=False, read_config=options, decoders=decoders)
        for example in tfds.as_numpy(untuned(examples)):
            yield example[self.image_key], -1 if self.class_key is None else int(example[self.class_key])


def open_tfds(name: str, dataset: str, *, data_dir: str = "", download: bool = False) -> TfdsSource:
    """Opens a TFDS data set.

    Args:
        name: The name of the data set with its setting, for messages.
        dataset: The name by which TFDS knows the data set.
        data_dir: The directory where TFDS keeps its data sets; "" for TFDS' own default.
        download: Lets TFDS download and prepare the data set if it is missing.

    Raises:
        SourceError: The data set is unknown or not prepared, or has no images or no split to train on.
    """
    import tensorflow_datasets as tfds

    kept_in = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        builder = tfds.builder(dataset, data_dir=data_dir or None)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, AssertionError) as error:
        if pathlib.Path(dataset).is_file():
            raise SourceError(
                f"{name}: one file. Name the directory that holds images, folder:{pathlib.Path(dataset).parent}"
            ) from error
        raise SourceError(
            f"{name}: unknown. Use digits, idx:DIR, folder:DIR, npz:FILE, records:DIR, features:FILE, synthetic, or the name of a TFDS data "
            f"set, registered or prepared in {kept_in}"
        ) from error
    if download:
        try:
            builder.download_and_prepare()
        except Exception as error:  # TFDS and the libraries below it raise errors of any kind.
            raise SourceError(f"{name}: TFDS could not download and prepare it: {error}") from error
    if not builder.info.splits or not pathlib.Path(str(builder.data_dir)).is_dir():
        raise SourceError(f"{name}: TFDS has not prepared it in {kept_in}. Add `download=True`, or `data_dir` where it is")
    features = builder.info.features
    image_key = next((key for key, feature in features.items() if isinstance(feature, tfds.features.Image)), None)
    class_key = next((key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)), None)
    if image_key is None:
        raise SourceError(f"{name}: it has no image feature (it has {', '.join(features)})")
    splits = builder.info.splits
    train = next((each for each in TRAIN_NAMES if each in splits), None)
    if train is None:
        raise SourceError(f"{name}: it has no split 'train' (it has {', '.join(splits)})")
    return TfdsSource(builder, image_key, class_key, train, next((each for each in EVAL_NAMES if each in splits), None))


def load_tfds(source: SourceName, *, data_dir: str, download: bool, memory_limit: int, use_classes: bool = True) -> Splits:
    """Loads the images of a TFDS data set into memory.

    Args:
        source: The name of the source.
        data_dir: The directory where TFDS keeps its data sets; "" for TFDS' own default.
        download: Lets TFDS download and prepare the data set if it is missing.
        memory_limit: Bytes that the images may take.
        use_classes: False leaves class labels out.

    Raises:
        SourceError: The data set is unknown or not prepared, has images of several sizes, takes more than `memory_limit` bytes, or has
            images without a class label.
    """
    name = str(source)
    prepared = open_tfds(name, source.name, data_dir=data_dir, download=download)

    def part(split: str) -> ImageSet:
        images: list[np.ndarray] = []
        classes: list[int] = []
        size = 0
        for pixels, class_number in prepared.examples(split):
            images.append(pixels)
            classes.append(class_number)
            size += pixels.nbytes
            if pixels.shape != images[0].shape:
                raise SourceError(f"{name}: its images have many sizes ({images[0].shape}, {pixels.shape}, …). {INGEST}")
            check_memory(name, size, memory_limit)
        if prepared.class_names is None or not use_classes:
            return array_set(source, np.stack(images), None)
        labels = class_labels(np.array(classes), len(images), key=f"the labels of split {split!r}", source=name)
        return array_set(source, np.stack(images), labels._replace(names=prepared.class_names))

    return Splits(part(prepared.train), part(prepared.eval) if prepared.eval else None)


def outline_tfds(source: SourceName, *, data_dir: str, download: bool) -> Splits:
    """Outlines a TFDS data set without decoding images; the arguments are those of `open_tfds`.

    The number of images is TFDS' own count. Class labels are left out. The image size is None if the features do not have it.

    Raises:
        SourceError: The data set is unknown or not prepared.
    """
    prepared = open_tfds(str(source), source.name, data_dir=data_dir, download=download)
    height, width, channels = prepared.builder.info.features[prepared.image_key].shape

    def part(split: str) -> ImageSet:
        return ImageSet(
            name=source.name,
            setting=source.setting,
            channels=channels or 3,
            store=Unread(prepared.num_examples(split)),
            image_size=(height, width) if height and width else None,
        )

    return Splits(part(prepared.train), part(prepared.eval) if prepared.eval else None)
