"""Pictures of a run on vectors: those of a source of images, or those that a file of paths names, row by row."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from sela_tf.compat.activity import Activity
from sela_tf.data.csv_rows import original_names
from sela_tf.data.image_set import ImageSet, Splits
from sela_tf.data.listing import inspect_header
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.stores import Files
from sela_tf.settings.commands import ReportConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import absolute_path, absolute_source
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data, tell
from sela_tf.training.page import Pictures

PATH_FILES = (".csv", ".parquet", ".txt")
"""Endings of files that hold a column of paths; a text file holds one a line."""
_COLUMN = "path"
_SIDE = 64
"""Side in pixels at which pictures of many sizes are read."""


def load_pictures(settings: ReportConfig, config: SelaConfig, data: Data) -> Pictures:
    """Loads the pictures that stand for the vectors of a run.

    Args:
        settings: the settings of the command, with `images`.
        config: the settings of the run.
        data: the vectors of the run.

    Raises:
        ValueError: the run is on images, the pictures cannot be loaded (SourceError), or there are not as many as vectors.
    """
    setting = f"`images={settings.images}`"
    if not data.train.is_vectors:
        raise ConfigError(f"{setting} is for runs on vectors, and `dataset={config.dataset}` has images itself: leave it out")
    if settings.images.lower().endswith(PATH_FILES):
        splits = Splits(_listed(pathlib.Path(absolute_path(settings.images)), setting), None)
    else:
        options = SourceOptions(use_classes=False, data_dir=config.data_dir, cache_dir=config.cache_dir)
        with Activity("reading pictures"):
            splits = load_source(absolute_source(settings.images, tell=tell), options, setting="images", tell=tell)
    if splits.train.is_vectors:
        raise ConfigError(f"{setting} has vectors: name images")
    train, held_out = _matched(splits, data, setting)
    return Pictures(train, held_out, train.image_size or (_SIDE, _SIDE))


def _matched(splits: Splits, data: Data, setting: str) -> tuple[ImageSet, ImageSet]:
    """Returns the pictures of the training and of the held-out vectors.

    Raises:
        ConfigError: there are not as many as vectors.
    """
    training, held_out = data.train.rows, data.held_out.rows
    pictures = splits.train
    if len(np.intersect1d(training, held_out)):
        # Held-out vectors have a source, and rows, of their own: their pictures come after those of the training vectors, or apart.
        left_out = sum(map(len, data.left_out))
        if splits.eval is not None:
            _check_count(len(splits.eval), len(held_out), "held-out", setting)
            _check_count(len(pictures), len(training) + left_out, "training", setting)
            return pictures.take(training), splits.eval.take(held_out)
        _check_count(len(pictures), len(training) + left_out + len(held_out), "training and held-out", setting)
        return pictures.take(training), pictures.take(len(training) + left_out + held_out)
    if splits.eval is not None:
        raise ConfigError(
            f"{setting} has two splits, and the vectors have one: name the pictures in one folder, or in a file of paths"
        )
    _check_count(len(pictures), len(training) + len(held_out) + sum(map(len, data.left_out)), "", setting)
    return pictures.take(training), pictures.take(held_out)


def _check_count(found: int, wanted: int, kind: str, setting: str) -> None:
    if found != wanted:
        raise ConfigError(
            f"{setting} has {found} pictures for {wanted} {kind + ' ' * bool(kind)}vectors: the i-th picture, in the order of their names, belongs "
            "to the i-th vector; a csv (its first line is the header), parquet or txt file with a column of paths gives another order"
        )


def _listed(path: pathlib.Path, setting: str) -> ImageSet:
    """Returns the images that a file of paths names, in its order.

    Raises:
        ConfigError: the file cannot be read, has no column of paths, or names a file that is not there.
    """
    try:
        if path.suffix.lower() == ".txt":
            names = path.read_text().splitlines()
        else:
            read = pa.parquet.read_table if path.suffix.lower() == ".parquet" else pa.csv.read_csv
            table = read(str(path))
            column = table.column_names[0] if table.num_columns == 1 else _COLUMN
            if column not in table.column_names:
                raise ConfigError(
                    f"{setting} has no column {_COLUMN!r}, but {', '.join(map(repr, table.column_names[:8]))}: rename one"
                )
            names = original_names([str(value) for value in table.column(column).to_pylist()])
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise ConfigError(f"{setting} cannot be read: {error}") from error
    paths = [os.path.join(path.parent, os.path.expanduser(name)) for name in names]
    for row, each in enumerate(paths):
        if not os.path.isfile(each):
            raise ConfigError(f"{setting}, row {row}: there is no file {each!r}")
        found = inspect_header(os.path.dirname(each), os.path.basename(each))
        if found.info is None:
            raise ConfigError(f"{setting}, row {row}: {each!r} cannot be read ({found.problem or 'no image'})")
    return ImageSet(name=str(path), channels=3, store=Files(tuple(paths)), names=tuple(names))
