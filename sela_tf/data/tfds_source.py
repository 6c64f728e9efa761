"""A data set that TFDS has prepared: which splits and features of it are images and classes, and its examples in a fixed order."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from sela_tf.data.image_set import EVAL_NAMES, TRAIN_NAMES, SourceError
from sela_tf.untuned import untuned


class TfdsSource(NamedTuple):
    """What `open_tfds` found."""

    builder: Any
    image_key: str
    class_key: str | None
    train: str
    """Name of the split."""
    eval: str | None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """None where there are no classes."""
        return None if self.class_key is None else tuple(self.builder.info.features[self.class_key].names)

    def num_examples(self, split: str) -> int:
        """As TFDS counted them."""
        return int(self.builder.info.splits[split].num_examples)

    def examples(self, split: str, *, encoded: bool = False) -> Iterator[tuple[Any, int]]:
        """Image and number of the class (-1 where there are none), in the order of the files.

        Args:
            split: of TFDS, also a part such as "train[100:200]".
            encoded: files as they are, bytes, instead of pixels uint8 [H, W, C].
        """
        import tensorflow_datasets as tfds

        # one file at a time, so that an example's row does not depend on timing
        options = tfds.ReadConfig(interleave_cycle_length=1)
        decoders = {self.image_key: tfds.decode.SkipDecoding()} if encoded else None
        examples = self.builder.as_dataset(split=split, shuffle_files=False, read_config=options, decoders=decoders)
        for example in tfds.as_numpy(untuned(examples)):
            yield example[self.image_key], -1 if self.class_key is None else int(example[self.class_key])


def open_tfds(name: str, dataset: str, *, data_dir: str = "", download: bool = False) -> TfdsSource:
    """Finds it where TFDS keeps it, and has it prepared if `download` is given.

    Raises:
        SourceError: it is unknown or not prepared, or has no images or no split to train on.
    """
    import tensorflow_datasets as tfds

    kept_in = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        builder = tfds.builder(dataset, data_dir=data_dir or None)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise SourceError(
            f"{name}: unknown. Use digits, idx:DIR, folder:DIR, npz:FILE, records:DIR, features:FILE, synthetic, or the name of a TFDS data "
            f"set, registered or prepared in {kept_in}"
        ) from error
    if download:
        try:
            builder.download_and_prepare()
        except Exception as error:  # TFDS and what it calls raise whatever they like
            raise SourceError(f"{name}: TFDS could not download and prepare it: {error}") from error
    if not builder.info.splits or not pathlib.Path(str(builder.data_dir)).is_dir():
        raise SourceError(f"{name}: TFDS has not prepared it in {kept_in}. Add --download, or --data_dir where it is")
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
