"""The work of `python -m sela_tf.export`: a finished run as a model for TensorFlow Serving."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import shlex
import textwrap
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.commands.outputs import only_writer
from sela_tf.compat.activity import Activity
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pixel_rules import PixelRules
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.splits import match_input
from sela_tf.data.stores import Arrays
from sela_tf.reporting.markdown import markdown
from sela_tf.runs.cluster_names import kept_names, names_to_use
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.labels import read_labels
from sela_tf.runs.network import load_run, read_description
from sela_tf.serving.check import NUM_IMAGES, CheckResult, check_saved_model
from sela_tf.serving.saved_model import export_saved_model, read_signatures
from sela_tf.settings.commands import ExportConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import refuse_unwritable
from sela_tf.training.devices import prepare_devices
from sela_tf.training.images import load_data, tell


class ExportResult(NamedTuple):
    """An export that was written."""

    path: pathlib.Path
    """Directory of the export, EXPORT_DIR/VERSION."""
    checked: CheckResult | None
    """Outcome of the check; None where it was not asked for."""
    images: str
    """Name of the images that it was checked with; empty without check."""


class _Extras(NamedTuple):
    """The things that are exported with the network."""

    potentials: np.ndarray | None = None
    """Potentials [T, K] of the run's last transport."""
    lam: float = 1.0
    """Lambda of that transport."""
    names: np.ndarray | None = None
    """Names [T, K] of the clusters."""


def export_run(settings: ExportConfig) -> ExportResult:
    """Writes the network of a finished run as the next version of a served model, whole or not at all.

    Args:
        settings: run, directory of the served model, and what is exported.

    Raises:
        ConfigError: there is no finished run, its labels.npz is damaged, the version exists, the directory cannot be written, or
            tensorflow-serving-api is missing.
        SourceError: the file of names is malformed.
        MismatchError: the export does not answer as the network does.
    """
    if settings.warm_up:
        _require_serving_api()
    directory = _directory(settings)
    # The number of the version, too, is this command's alone.
    with only_writer("export_dir", directory):
        return export_to(_version_directory(directory, settings), settings)


def export_to(path: pathlib.Path, settings: ExportConfig) -> ExportResult:
    """Writes the network of a finished run into the new directory `path`, whose name need not be a number (see `export_run`)."""
    # Serving does not need the devices that the run was trained on.
    prepare_devices(dataclasses.replace(read_config(settings.workdir), logical_cpus=0))
    model, rules = load_run(settings.workdir), read_description(settings.workdir).pixel_rules
    extras = _read_transport(pathlib.Path(settings.workdir), model) if settings.potentials else _Extras()
    shape = model.output.shape[1:]
    names = names_to_use(settings.names, kept_names(pathlib.Path(settings.workdir)), *shape)
    if names.clusters:
        extras = extras._replace(names=names.of_clusters(*shape))
    checked: list[CheckResult] = []
    images: ImageSet | None = None
    if settings.check:
        images = _images(settings, model, rules)

    def check(unfinished: pathlib.Path) -> None:
        if images is not None:
            tell(f"checking it with {min(NUM_IMAGES, len(images))} of {images.full_name}")
            checked.append(check_saved_model(unfinished, model, images, **extras._asdict()))

    try:
        with Activity("writing the served model"):
            export_saved_model(model, path, pixel_rules=rules, warm_up=settings.warm_up, check=check, **extras._asdict())
    except FileExistsError as error:
        raise _version_is_there(path) from error
    return ExportResult(path, checked[0] if checked else None, images.name if images is not None else "")


def _require_serving_api() -> None:
    """Checks that tensorflow-serving-api is installed, before the work begins.

    Raises:
        ConfigError: it is not.
    """
    try:
        importlib.import_module("tensorflow_serving.apis.prediction_log_pb2")
    except ImportError as error:
        raise ConfigError(
            f"warm-up requests need tensorflow-serving-api ({error}): pip install 'sela-tf[serving]', or leave them out with `warm_up=False`"
        ) from error


def _directory(settings: ExportConfig) -> pathlib.Path:
    """Returns the directory of all versions, which is made if it is missing.

    Raises:
        ConfigError: it cannot be written.
    """
    directory = pathlib.Path(settings.export_dir)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"`export_dir={directory}` is a file: name a directory")
    refuse_unwritable("export_dir", directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _version_directory(directory: pathlib.Path, settings: ExportConfig) -> pathlib.Path:
    """Returns the directory of the version to write.

    Raises:
        ConfigError: it exists.
    """
    versions = [int(each.name) for each in directory.iterdir() if each.name.isdecimal()]
    if settings.export_version in versions:
        raise _version_is_there(directory / str(settings.export_version))
    return directory / str(settings.export_version or max(versions, default=0) + 1)


def _version_is_there(path: pathlib.Path) -> ConfigError:
    """Returns the error of a version that exists."""
    return ConfigError(
        f"`export_version={path.name}` is in `export_dir={path.parent}` already: choose another, or leave `export_version` out for the next"
    )


def _read_transport(workdir: pathlib.Path, model: keras.Model) -> _Extras:
    """Reads the last transport of the run, and prints a warning where it did not converge.

    Raises:
        ConfigError: labels.npz is missing or damaged.
    """
    try:
        labels = read_labels(workdir, model.output.shape[1:])
    except ConfigError as error:
        raise ConfigError(f"{error}. Or export the network's plain argmax with `potentials=False`") from error
    potentials, lam = labels["potentials"], float(labels["lam"])
    unsolved = np.flatnonzero(~labels["converged"])
    if len(unsolved):
        print(
            f"the last transport of heads {', '.join(map(str, unsolved))} did not converge: its potentials are approximate",
            flush=True,
        )
    return _Extras(potentials, lam)


def _images(settings: ExportConfig, model: keras.Model, rules: PixelRules) -> ImageSet:
    """Returns the run's held-out images in the form that the network takes; synthetic images if those cannot be loaded."""
    shape = model.input.shape[1:]
    try:
        # A few images are looked at.
        held_out = load_data(dataclasses.replace(read_config(settings.workdir), cache_images=False), rules).held_out
        return match_input(held_out, shape)
    except (ValueError, OSError, tf.errors.OpError) as error:
        print(f"the run's images cannot be loaded ({' '.join(str(error).split())}): checking with synthetic ones", flush=True)
        if len(shape) == 1:
            vectors = np.random.default_rng(0).normal(size=(NUM_IMAGES, *shape)).astype(np.float32)
            return ImageSet(name="synthetic vectors", channels=shape[0], store=Arrays(vectors), image_size=())
        return match_input(load_source(f"synthetic:{NUM_IMAGES}", SourceOptions(rules=rules)).train, shape)


def summary(exported: ExportResult) -> str:
    """Returns a summary for a terminal: what was written, and how to serve it."""
    size = sum(file.stat().st_size for file in exported.path.rglob("*") if file.is_file())
    signatures = read_signatures(exported.path)
    rows = [[name, ", ".join(map(_described, each.inputs, each.inputs.values()))] for name, each in signatures.items()]
    outputs = next(iter(signatures.values())).outputs
    lines = [
        f"Written: {exported.path}, {size / 1e6:.1f} MB",
        "",
        markdown(["signature", "input"], rows),
        "",
        f"each gives {', '.join(map(_described, outputs, outputs.values()))}",
        "",
    ]
    if exported.checked is not None:
        lines += [_check_report(exported.checked, exported.images), ""]
    mount = shlex.quote(f"{exported.path.parent}:/models/sela:ro")
    serve = f"docker run --rm -p 8500:8500 -p 8501:8501 -v {mount} -e MODEL_NAME=sela tensorflow/serving"
    return "\n".join([*lines, f"Serve it, gRPC on 8500 and REST on 8501:\n  {serve}"])


def _described(name: str, spec: tf.TensorSpec) -> str:
    """Returns name, dtype and shape of an input or output; B stands for the batch."""
    sides = ", ".join("B" if i == 0 else "any" if side is None else str(side) for i, side in enumerate(spec.shape))
    return f"{name} {spec.dtype.name} [{sides}]"


def _check_report(checked: CheckResult, images: str) -> str:
    """Returns the outcome of the check in words, and the table of its timings."""
    differences = ", ".join(f"{name} {value:.1g}" for name, value in checked.differences.items())
    words = (
        f"In a process without sela_tf, {checked.num_images} of {images} give the network's answers; largest differences {differences}; "
        f"allowed {checked.tolerance:g} of the largest embedding, of probability and of margin, and of clusters those as close."
    )
    return (
        f"{textwrap.fill(words, 100)}\n\n{markdown(['signature', 'batch', 'median, ms', '95 %, ms', 'images/s'], checked.rows())}"
    )
