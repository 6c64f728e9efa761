"""Files that a release of TensorFlow writes for other releases to read; `python tests/releases.py` writes those of the release that runs."""

from __future__ import annotations

import io
import json
import pathlib
import shutil
import sys

import numpy as np
import tensorflow as tf
from PIL import Image

import sela_tf
from sela_tf.compat.releases import RELEASE
from sela_tf.data.sources import load_source
from sela_tf.training.experiment import Experiment
from sela_tf.training.loop import step_function

FILES = pathlib.Path(__file__).parent / "data" / "releases"
SETTINGS = {
    "dataset": "digits", "eval_fraction": 0.25, "backbone": "resnet8", "width": 4, "num_heads": 2, "num_clusters": 16, "batch_size": 64,
    "flip_probability": 0.0, "crop_scale": 0.5, "hue": 0.0, "epochs": 2, "learning_rate": 0.05, "num_relabellings": 4, "report": False, "cache_dir": "/cache",
    "hidden_units": 0, "lr_schedule": "step", "monitor_epochs": 1, "weight_decay": 1e-5, "rotation": False,
}  # fmt: skip
NUM_SHOWN = 64


def pixels() -> np.ndarray:
    """All digits, uint8 [1797, 8, 8, 1]."""
    return load_source("digits").train.images


def log_probs() -> np.ndarray:
    """A transport problem with clusters of unequal size, float32 [512, 16]."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(512, 16)) + rng.normal(size=16)
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def served(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """The answers of an exported model for the first digits, as PNG files."""
    files = []
    for image in pixels()[:NUM_SHOWN, :, :, 0]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    loaded = tf.saved_model.load(str(directory))
    answers = loaded.signatures["serving_default"](image_bytes=tf.constant(files))
    return {name: value.numpy() for name, value in answers.items()}


def first_losses(run: pathlib.Path, steps: int = 20) -> list[float]:
    """The losses of the first steps of SGD from the weights and the labels of a run, on batches of one seed."""
    config = sela_tf.SelaConfig(**{**SETTINGS, "num_relabellings": 0, "labels_from": str(run / "labels.npz")})
    experiment = Experiment(config, tf.distribute.get_strategy())
    experiment.model.set_weights(sela_tf.load_run(run).get_weights())
    step, losses = step_function(experiment.model, experiment.strategy, xla=False), []
    for batch in experiment.views(0, steps):
        losses.append(float(step(batch)["loss"]))
        experiment.model.reset_metrics()
    return losses


def write(directory: pathlib.Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    sela_tf.run(sela_tf.SelaConfig(**SETTINGS), directory / "run")
    for name in ("checkpoints", "tensorboard", "metrics.jsonl", "timings.jsonl", ".lock"):
        path = directory / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    config = sela_tf.ExportConfig(workdir=str(directory / "run"), export_dir=str(directory / "served"), warm_up=False)
    sela_tf.export_run(config)
    logits = sela_tf.load_run(directory / "run")(pixels()[:NUM_SHOWN].astype(np.float32)).numpy()
    labels = sela_tf.sinkhorn(log_probs(), lam=10.0, tolerance=1e-5).labels
    np.savez(directory / "answers.npz", logits=logits, labels=labels, **served(directory / "served" / "1"))
    # All releases start from the same weights and labels.
    (directory / "losses.json").write_text(json.dumps(first_losses(FILES / "2.21" / "run")) + "\n")


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]) if sys.argv[1:] else FILES / RELEASE)
