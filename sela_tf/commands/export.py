"""A finished run as a model for TensorFlow Serving: `export_run(settings)`."""

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

from sela_tf.data.image_set import ImageSet
from sela_tf.data.sources import load_source
from sela_tf.data.splits import match_input
from sela_tf.data.stores import Arrays
from sela_tf.reporting.markdown import markdown
from sela_tf.runs.labels import read_labels
from sela_tf.runs.network import load_run
from sela_tf.runs.workdir import read_config
from sela_tf.serving.check import NUM_IMAGES, Checked, check_saved_model
from sela_tf.serving.saved_model import export_saved_model, read_signatures
from sela_tf.settings.commands import ExportConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import refuse_unwritable
from sela_tf.training.devices import prepare_devices
from sela_tf.training.images import load_data


class Exported(NamedTuple):
    """What was written."""

    path: pathlib.Path
    """EXPORT_DIR/VERSION."""
    checked: Checked | None
    images: str
    """What it was checked with."""


class _Transport(NamedTuple):
    """The last one of the run."""

    potentials: np.ndarray | None = None
    lam: float = 1.0


def export_run(settings: ExportConfig) -> Exported:
    """Writes the network of a finished run as the next version of a served model, whole or not at all.

    Raises:
        ValueError: there is no finished run, its labels.npz is damaged, the version is there, the directory cannot be written, or
            tensorflow-serving-api is missing (ConfigError); or the export does not answer as the network does (MismatchError).
    """
    if settings.warm_up:
        _need_serving_api()
    return export_to(_place(settings), settings)


def export_to(path: pathlib.Path, settings: ExportConfig) -> Exported:
    """As `export_run`, into the new directory `path`, whatever its name is."""
    # serving has no need of the devices that the run was trained on
    prepare_devices(dataclasses.replace(read_config(settings.workdir), logical_cpus=0))
    model = load_run(settings.workdir)
    transport = _read_transport(pathlib.Path(settings.workdir), model) if settings.potentials else _Transport()
    checked: list[Checked] = []
    images: ImageSet | None = None
    if settings.check:
        images = _images(settings, model)

    def check(unfinished: pathlib.Path) -> None:
        if images is not None:
            print(f"checking it with {min(NUM_IMAGES, len(images))} of {images.name}", flush=True)
            checked.append(check_saved_model(unfinished, model, images, **transport._asdict()))

    try:
        export_saved_model(model, path, warm_up=settings.warm_up, check=check, **transport._asdict())
    except FileExistsError as error:
        raise _version_is_there(path) from error
    return Exported(path, checked[0] if checked else None, images.name if images is not None else "")


def _need_serving_api() -> None:
    try:
        importlib.import_module("tensorflow_serving.apis.prediction_log_pb2")
    except ImportError as error:
        raise ConfigError(
            f"warm-up requests need tensorflow-serving-api ({error}): pip install 'sela-tf[serving]', or leave them out with --nowarm_up"
        ) from error


def _place(settings: ExportConfig) -> pathlib.Path:
    """Where the version goes.

    Raises:
        ConfigError: it cannot go there.
    """
    directory = pathlib.Path(settings.export_dir)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--export_dir={directory} is a file: name a directory")
    refuse_unwritable("export_dir", directory)
    versions = [int(each.name) for each in directory.iterdir() if each.name.isdecimal()] if directory.is_dir() else []
    if settings.export_version in versions:
        raise _version_is_there(directory / str(settings.export_version))
    return directory / str(settings.export_version or max(versions, default=0) + 1)


def _version_is_there(path: pathlib.Path) -> ConfigError:
    return ConfigError(
        f"--export_version={path.name} is in --export_dir={path.parent} already: choose another, or leave --export_version out for the next"
    )


def _read_transport(workdir: pathlib.Path, model: keras.Model) -> _Transport:
    try:
        labels = read_labels(workdir, model.output.shape[1:])
    except ConfigError as error:
        raise ConfigError(f"{error}. Or export the network's plain argmax with --nopotentials") from error
    potentials, lam = labels["potentials"], float(labels["lam"])
    unsolved = np.flatnonzero(~labels["converged"])
    if len(unsolved):
        print(
            f"the last transport of heads {', '.join(map(str, unsolved))} did not converge: its potentials are approximate",
            flush=True,
        )
    return _Transport(potentials, lam)


def _images(settings: ExportConfig, model: keras.Model) -> ImageSet:
    """Held out by the run; made ones where they cannot be had any more."""
    shape = model.input.shape[1:]
    try:
        held_out = load_data(read_config(settings.workdir)).held_out
        return match_input(held_out, shape)
    except (ValueError, OSError, tf.errors.OpError) as error:
        print(f"the run's images cannot be loaded ({' '.join(str(error).split())}): checking with synthetic ones", flush=True)
        if len(shape) == 1:
            vectors = np.random.default_rng(0).normal(size=(NUM_IMAGES, *shape)).astype(np.float32)
            return ImageSet(name="synthetic vectors", channels=shape[0], store=Arrays(vectors), image_size=())
        return match_input(load_source(f"synthetic:{NUM_IMAGES}").train, shape)


def summary(exported: Exported) -> str:
    """What was written, and how it is served."""
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
        lines += [_report(exported.checked, exported.images), ""]
    mount = shlex.quote(f"{exported.path.parent}:/models/sela:ro")
    serve = f"docker run --rm -p 8500:8500 -p 8501:8501 -v {mount} -e MODEL_NAME=sela tensorflow/serving"
    return "\n".join([*lines, f"Serve it, gRPC on 8500 and REST on 8501:\n  {serve}"])


def _described(name: str, spec: tf.TensorSpec) -> str:
    sides = ", ".join("B" if i == 0 else "any" if side is None else str(side) for i, side in enumerate(spec.shape))
    return f"{name} {spec.dtype.name} [{sides}]"


def _report(checked: Checked, images: str) -> str:
    differences = ", ".join(f"{name} {value:.1g}" for name, value in checked.differences.items())
    words = (
        f"In a process without sela_tf, {checked.num_images} of {images} give the network's answers; largest differences {differences}; "
        f"allowed {checked.tolerance:g} of the largest embedding, of probability and of margin, and of clusters those as close."
    )
    return (
        f"{textwrap.fill(words, 100)}\n\n{markdown(['signature', 'batch', 'median, ms', '95 %, ms', 'images/s'], checked.rows())}"
    )
