"""tensorflow-addons beside the library on TensorFlow 2.15: its optimizers in a run, its layers in a model, its image operations as oracles."""

from __future__ import annotations

import importlib
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import ROOT, SMALL, rows, run_door
from user_model import K, N, T, batches

import sela_tf
from sela_tf.compat.decoupled import why_unavailable
from sela_tf.compat.releases import IS_KERAS_3
from sela_tf.data import augment
from sela_tf.self_labelling.schedule import relabel_steps

if IS_KERAS_3:
    pytest.skip("tensorflow-addons can be imported on TensorFlow 2.15 only", allow_module_level=True)
if reason := why_unavailable("sgdw"):
    pytest.skip(reason, allow_module_level=True)
# It is loaded already, and does not announce its end again.
tfa = importlib.import_module("tensorflow_addons")


def transformed(image: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A box (top, left, bottom, right), in shares of the sides, of an image [H, W, C], resized between pixel centres by tensorflow-addons."""
    top, left, bottom, right = box
    across, down = (right - left) * image.shape[1] / size[1], (bottom - top) * image.shape[0] / size[0]
    # The centre of pixel i lies at i + 1/2.
    x, y = left * image.shape[1] + across / 2 - 0.5, top * image.shape[0] + down / 2 - 0.5
    return tfa.image.transform(
        tf.constant(image), [across, 0, x, 0, down, y, 0, 0], "bilinear", fill_mode="nearest", output_shape=list(size)
    ).numpy()


class TestImages:
    @pytest.mark.parametrize("shape", [(24, 24, 3), (64, 48, 1)])
    def test_blur(self, rng, shape):
        """The same kernel, and the image is mirrored at its borders by both."""
        images = rng.uniform(0, 255, (5, *shape)).astype(np.float32)
        draws = rng.uniform(size=(5, augment.NUM_DRAWS)).astype(np.float32)
        none = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "grayscale_probability"), 0.0)
        blurred = augment.recolour(images, draws, augment.Augmentation(**none, blur_probability=1.0))
        kernel = [2 * max(1, side // 20) + 1 for side in shape[:2]]
        for image, draw, found in zip(images, draws, blurred, strict=True):
            sigma = float(0.1 + 1.9 * draw[augment._SIGMA])
            expected = tfa.image.gaussian_filter2d(image, kernel, sigma, padding="SYMMETRIC")
            np.testing.assert_allclose(found, expected, atol=1e-3)
        assert np.abs(blurred - images).max() > 1

    @pytest.mark.parametrize("size", [(9, 9), (20, 31), (48, 40)])
    def test_crop_of_a_batch(self, rng, size):
        """Boxes half a pixel within the image: nearer to the border both repeat its pixels, and differ in the spacing of the samples."""
        images = rng.uniform(0, 255, (20, 32, 40, 3)).astype(np.float32)
        boxes = augment.crop_boxes(rng.uniform(size=(20, augment.NUM_DRAWS)), 40 / 32, augment.Augmentation(), target_aspect=1.0)
        boxes = np.clip(boxes, 0.5 / 32, 1 - 0.5 / 32).astype(np.float32)
        assert 0 < (boxes[:, 1] > boxes[:, 3]).sum() < 20
        found = augment.crop_batch(images, tf.range(20), boxes, size)
        for image, box, crop in zip(images, boxes, found, strict=True):
            np.testing.assert_allclose(crop, transformed(image, box, size), atol=0.02)

    @pytest.mark.parametrize("flip", [False, True])
    def test_crop_of_one(self, rng, flip):
        """Made larger, so that nothing is antialiased; the pixels around the box are not looked at."""
        image = rng.uniform(0, 255, (32, 40, 3)).astype(np.float32)
        whole = [0.0, 1.0, 1.0, 0.0] if flip else [0.0, 0.0, 1.0, 1.0]
        box = np.array([4 / 32, 7 / 40, 20 / 32, 31 / 40], np.float32)
        found = augment.crop_one(image, box[[0, 3, 2, 1]] if flip else box, (40, 50))
        np.testing.assert_allclose(found, transformed(image[4:20, 7:31], np.array(whole), (40, 50)), atol=0.02)


def test_a_model_with_a_layer_of_addons_trains_and_is_saved(values, tmp_path):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8)(inputs)
    x = keras.layers.ReLU()(tfa.layers.GroupNormalization(groups=4)(x))
    model = keras.Model(inputs, sela_tf.MultiHead(T, K)(x))
    table = sela_tf.LabelTable(T, K, N)
    optimizer = tfa.optimizers.SGDW(weight_decay=1e-4, learning_rate=0.05, momentum=0.9)
    model.compile(optimizer, loss=sela_tf.SelfLabelLoss(table))
    steps = relabel_steps(4, epochs=6, steps_per_epoch=6, spacing="linear")
    labelling = sela_tf.SelfLabelling(table, batches(values), relabel_steps=steps)
    losses = model.fit(
        batches(values), epochs=6, callbacks=[labelling, sela_tf.CollapseDoctor(table)], shuffle=False, verbose=0
    ).history["loss"]
    assert losses[-1] < losses[0]
    assert table.num_relabellings.tolist() == [len(steps)] * T
    assert all(np.bincount(head, minlength=K).tolist() == [N // K] * K for head in table.labels)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(values, verbose=0), model.predict(values, verbose=0))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lamb", "sgdw"])
def test_a_killed_run_continues_to_the_same_bits(tmp_path, optimizer):
    flags = [*SMALL, f"--optimizer={optimizer}", "--learning_rate=0.05", "--num_relabellings=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = [sys.executable, "-m", "sela_tf.train", *flags, f"--workdir={parts}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    metrics, deadline = parts / "metrics.jsonl", time.monotonic() + 200
    while time.monotonic() < deadline and not (metrics.exists() and '"train", "step": 24' in metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=200) == -signal.SIGKILL
    continued = run_door(*flags, f"--workdir={parts}")
    assert continued.returncode == 0, continued.stderr
    assert "continues at step 21" in continued.stdout
    assert run_door(*flags, f"--workdir={whole}").returncode == 0
    assert rows(parts) == rows(whole)
    for name, value in last_state(whole).items():
        np.testing.assert_array_equal(last_state(parts)[name], value, err_msg=name)


def last_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    (path,) = workdir.glob("checkpoints/step-*42/state.npz")
    with np.load(path) as arrays:
        return dict(arrays)
