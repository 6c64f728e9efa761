"""The work of `python -m sela_tf.report`: the report of a finished run, drawn anew, and the names of its clusters."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from sela_tf.commands.pictures import load_pictures
from sela_tf.compat.activity import Activity
from sela_tf.data.errors import SourceError
from sela_tf.data.label_files import find_images
from sela_tf.files.atomic import whole_file
from sela_tf.runs.cluster_names import Names, named, put_names, read_names
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.labels import read_labels
from sela_tf.runs.lock import lock_run
from sela_tf.runs.names import NAMES, PAGE, RESULTS
from sela_tf.runs.network import load_run, read_description
from sela_tf.runs.results import has_results, read_results
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.commands import ReportConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import absolute_cache, absolute_source, refuse_unwritable
from sela_tf.settings.training import SelaConfig
from sela_tf.training.devices import prepare_devices
from sela_tf.training.evaluation import outputs_of_run
from sela_tf.training.images import Data, load_data, tell
from sela_tf.training.report import write_report


def report_run(settings: ReportConfig) -> str:
    """Draws the report of a finished run anew; with `names`, its clusters get these names first.

    Args:
        settings: the run, the names, and where its images lie.

    Returns:
        A summary for a terminal.

    Raises:
        ConfigError: there is no finished run or no verdict of it, its images are not the same, or another process writes the run.
        SourceError: the images or the names cannot be read.
        StorageError: the disk is full.
    """
    workdir = pathlib.Path(settings.workdir)
    # Without a run, there is no directory to lock.
    read_config(workdir)
    refuse_unwritable("workdir", workdir)
    descriptor = lock_run(workdir)
    try:
        return _report(settings, workdir)
    finally:
        os.close(descriptor)


def _report(settings: ReportConfig, workdir: pathlib.Path) -> str:
    """Does the work of `report_run`."""
    config, description = read_config(workdir), read_description(workdir)
    shape = (description.num_heads, description.num_clusters)
    labels = read_labels(workdir, shape)
    if not has_results(workdir):
        raise ConfigError(f"the run in {str(workdir)!r} has no verdict ({RESULTS}) yet: repeat its command, which writes it")
    results = read_results(workdir)
    names = Names({}, {})
    if settings.names:
        names = read_names(settings.names, num_heads=shape[0], num_clusters=shape[1], setting="names")
    elif (workdir / NAMES).exists():
        # The names of clusters are in labels.npz, and may have been given anew since; those of single images are here alone.
        names = read_names(workdir / NAMES, num_heads=shape[0], num_clusters=shape[1], setting="names")
    # A report does not need the devices that the run was trained on.
    strategy = prepare_devices(dataclasses.replace(config, logical_cpus=0))
    config = dataclasses.replace(
        config,
        dataset=absolute_source(settings.dataset, tell=tell) if settings.dataset else config.dataset,
        data_dir=settings.data_dir or config.data_dir,
        cache_dir=absolute_cache(settings.cache_dir) if settings.cache_dir else config.cache_dir,
    )
    data = load_data(config, description.pixel_rules)
    _refuse_other_images(workdir, labels, data)
    _refuse_unknown(names, data, f"`names={settings.names}`")
    pictures = load_pictures(settings, config, data) if settings.images else None
    if settings.names:
        given = pathlib.Path(settings.names).expanduser().read_bytes()
        put_names(workdir, names)
        with whole_file(workdir / NAMES) as unfinished:
            unfinished.write_bytes(given)
    outputs = outputs_of_run(
        config, data, load_run(workdir), potentials=labels["potentials"], lam=float(labels["lam"]), strategy=strategy
    )
    with Activity("drawing the report"):
        write_report(
            Workdir(workdir, {}), config, data, labels["labels"], results, outputs, pictures=pictures, image_names=names.images
        )
    return _summary(workdir, config, data, names)


def _refuse_other_images(workdir: pathlib.Path, labels: Mapping[str, np.ndarray], data: Data) -> None:
    """Refuses images that are not those of the run, trained on or held out.

    Raises:
        ConfigError: they are others.
    """
    if not data.train.matches(str(labels["data_fingerprint"]), tell=tell):
        raise ConfigError(
            f"the run in {str(workdir)!r} was trained on {labels['labels'].shape[1]} images, and the {len(data.train)} of "
            f"{data.train.full_name} are not the same: restore them, or name those of the run with `dataset`"
        )
    # Runs that are older do not say which images they held out.
    if "held_out_fingerprint" in labels and not data.held_out.matches(str(labels["held_out_fingerprint"])):
        raise ConfigError(
            f"the {len(data.held_out)} held-out images of {data.held_out.full_name} are not those of the run in {str(workdir)!r}: restore them, "
            "or name the images of the run with `dataset`"
        )


def _refuse_unknown(names: Names, data: Data, setting: str) -> None:
    """Refuses names of images that are not there: the file is of another run, whose clusters have nothing to do with these.

    Raises:
        SourceError: an image is unknown.
    """
    by_name = data.train.names is not None
    what = "name" if by_name else "row"
    places = find_images([*names.images], data.train, [data.held_out, *data.left_out], by_name=by_name)
    for source, place, other in zip(names.images, *places, strict=True):
        if place < 0 and other < 0:
            raise SourceError(
                f"{setting}: no image of the run has the {what} {source!r}: give the names of this run, or leave this image out"
            )


def _summary(workdir: pathlib.Path, config: SelaConfig, data: Data, names: Names) -> str:
    """Returns what was written."""
    page = workdir / PAGE
    lines = [
        f"Written: {page}, {page.stat().st_size / 1e6:.1f} MB: {config.num_heads} x {config.num_clusters} clusters, {len(data.train)} training and "
        f"{len(data.held_out)} held-out images. Open it in a browser."
    ]
    num_named = int(
        (named(read_labels(workdir, (config.num_heads, config.num_clusters)), config.num_heads, config.num_clusters) != "").sum()
    )
    if num_named or names.images:
        marked = f"; single images that are marked or named: {len(names.images)}" if names.images else ""
        lines.append(f"Clusters that have names: {num_named}{marked}.")
    return "\n".join(lines)
