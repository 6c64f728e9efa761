"""Files that TensorFlow 2.15 and 2.21 wrote, read by the release that runs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from fixtures import SMALL, is_one_line, run_here
from releases import FILES, NUM_SHOWN, RELEASE, first_losses, log_probs, pixels, served

import sela_tf
from sela_tf.data.sources import load_source
from sela_tf.models.build import cut_at
from sela_tf.models.inference import read_variable
from sela_tf.models.layer_names import EMBEDDING

WRITTEN_BY = ("2.15", "2.21")


@pytest.fixture(params=WRITTEN_BY)
def files(request):
    return FILES / request.param


@pytest.fixture
def answers(files):
    return dict(np.load(files / "answers.npz"))


def test_weights(files, answers):
    logits = sela_tf.load_run(files / "run")(pixels()[:NUM_SHOWN].astype(np.float32)).numpy()
    np.testing.assert_allclose(logits, answers["logits"], atol=1e-5)


def test_labels_are_written_by_the_command(files, answers, tmp_path):
    (door,) = run_here([[f"--workdir={files / 'run'}", f"--output={tmp_path / 'labels.npz'}"]], "sela_tf.label")
    assert door.returncode == 0, door.stderr
    written, kept = np.load(tmp_path / "labels.npz"), np.load(files / "run" / "labels.npz")
    rows = written["index"] < NUM_SHOWN
    order = np.argsort(written["index"][rows])
    scores = kept["lam"] * answers["logits"] + kept["potentials"]
    # Where two clusters are as near as rounding, either may be the label.
    top = np.sort(scores, axis=2)
    for head in range(2):
        labels = written[f"cluster_{head}"][rows][order]
        clear = top[:, head, -1] - top[:, head, -2] > 1e-3
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(labels[clear], scores.argmax(axis=2)[clear, head])


def test_served_models_answer_alike(files, answers):
    found = served(files / "served" / "1")
    assert found["valid"].all()
    for name, value in found.items():
        np.testing.assert_allclose(value, answers[name], atol=1e-5, err_msg=name)


def test_the_transport_gives_the_same_labels(answers):
    problem = log_probs()
    np.testing.assert_array_equal(sela_tf.sinkhorn(problem, lam=10.0, tolerance=1e-5).labels, answers["labels"])
    in_graph = sela_tf.sinkhorn_op(problem, lam=10.0, tolerance=1e-5, max_iterations=10_000)
    assert in_graph.converged
    np.testing.assert_array_equal(in_graph.labels, answers["labels"])


def test_the_first_losses_are_the_same():
    """SGD at .05, float32, one device, from the weights and labels that 2.21 wrote; the losses are of order 3."""
    losses = first_losses(FILES / "2.21" / "run")
    for release in WRITTEN_BY:
        expected = json.loads((FILES / release / "losses.json").read_text())
        assert len(expected) == 20
        np.testing.assert_allclose(losses, expected, atol=1e-4)


def without_digest(said: dict) -> dict:
    """The metadata of a checkpoint as it was before it had a digest and the settings."""
    return {name: value for name, value in said.items() if name not in ("meta_sha256", "settings")}


class TestTheWayAcross:
    def test_a_checkpoint_of_another_release_is_refused(self, continued):
        workdir, meta, command = continued
        said = json.loads(meta.read_text())
        assert said["tensorflow"] == RELEASE
        meta.write_text(json.dumps({**without_digest(said), "tensorflow": "2.14"}))
        (refused,) = run_here([[*command, "--epochs=3"]])
        is_one_line(refused, f"--workdir={workdir} holds a checkpoint of TensorFlow 2.14, and this is {RELEASE}")
        assert f"--backbone_weights={workdir}/model.weights.h5" in refused.stderr
        assert f"--labels_from={workdir}/labels.npz" in refused.stderr
        # The last network of an unfinished run is the checkpoint's alone.
        for name in ("model.weights.h5", "labels.npz", "network.json", "results.json"):
            (workdir / name).unlink()
        (unfinished,) = run_here([command])
        is_one_line(unfinished, "continue it there")
        assert "--backbone_weights" not in unfinished.stderr

    @pytest.mark.slow
    @pytest.mark.lane
    def test_checkpoints_without_a_record_are_of_2_20_or_2_21(self, continued):
        _, meta, command = continued
        said = without_digest(json.loads(meta.read_text()))
        del said["tensorflow"]
        meta.write_text(json.dumps(said))
        (door,) = run_here([[*command, "--epochs=3", "--evaluate=none"]])
        if RELEASE in ("2.20", "2.21"):
            assert door.returncode == 0, door.stderr
        else:
            is_one_line(door, "holds a checkpoint of TensorFlow 2.20 or 2.21")

    @pytest.mark.slow
    @pytest.mark.lane
    def test_backbone_and_labels_start_another_run(self, tmp_path):
        run = FILES / ("2.21" if RELEASE == "2.15" else "2.15") / "run"
        start = [
            f"--flagfile={run / 'flags.cfg'}", f"--backbone_weights={run / 'model.weights.h5'}", "--evaluate=none", "--epochs=1",
            "--learning_rate=1e-30", "--weight_decay=0", "--monitor_examples=0",
        ]  # fmt: skip
        same, other = (
            [*start, f"--labels_from={run / 'labels.npz'}", "--num_relabellings=0", f"--workdir={tmp_path / 'same'}"],
            [*start, "--num_heads=3", "--hidden_units=8", "--num_relabellings=1", f"--workdir={tmp_path / 'other'}"],
        )
        doors = run_here([same, other])
        assert [door.returncode for door in doors] == [0, 0], [door.stderr for door in doors]
        labels = np.load(tmp_path / "same" / "labels.npz")
        np.testing.assert_array_equal(labels["training_labels"], np.load(run / "labels.npz")["labels"])
        theirs = trainable(sela_tf.load_run(run))
        for name in ("same", "other"):
            ours = trainable(sela_tf.load_run(tmp_path / name))
            # The heads, and the hidden layer, are new.
            assert len(ours) == len(theirs) > 10
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)

    @pytest.mark.slow
    def test_a_run_continues_without_what_it_started_from(self, tmp_path):
        source = shutil.copytree(FILES / "2.21" / "run", tmp_path / "source")
        start = [
            f"--flagfile={source / 'flags.cfg'}", f"--backbone_weights={source / 'model.weights.h5'}", "--num_relabellings=0",
            f"--labels_from={source / 'labels.npz'}", "--evaluate=none", "--monitor_examples=0", f"--workdir={tmp_path / 'run'}",
        ]  # fmt: skip
        (first,) = run_here([[*start, "--epochs=1"]])
        assert first.returncode == 0, first.stderr
        command = [f"--flagfile={tmp_path / 'run' / 'flags.cfg'}", f"--workdir={tmp_path / 'run'}"]
        shutil.rmtree(source)
        again, longer, elsewhere = run_here(
            [[*command, "--epochs=1"], [*command, "--epochs=2"], [*command, f"--workdir={tmp_path / 'other'}"]]
        )
        assert "This run is finished" in again.stdout
        assert longer.returncode == 0, longer.stderr
        is_one_line(elsewhere, f"--backbone_weights={source}/model.weights.h5: there is no such file")

    def test_weights_that_cannot_be_are_refused_before_images_are_read(self, tmp_path, monkeypatch):
        run = FILES / "2.21" / "run"
        alone = shutil.copy(run / "model.weights.h5", tmp_path)
        monkeypatch.setattr("sela_tf.training.experiment.load_training_data", None)
        flags = [f"--flagfile={run / 'flags.cfg'}", f"--workdir={tmp_path / 'run'}", "--evaluate=none"]
        cases = {
            (
                f"--backbone_weights={run}/model.weights.h5",
                "--backbone=resnet20",
            ): "is of a run with --backbone=resnet8. Received: --backbone=resnet20",
            (f"--backbone_weights={run}/model.weights.h5", "--width=8"): "is of a run with --width=4. Received: --width=8",
            (
                f"--backbone_weights={alone}",
            ): "weights of resnet8 are read from a Keras model, NAME.keras, or from the directory of a finished run",
            ("--backbone_weights=/nowhere/x.h5", "--backbone=applications:MobileNetV2", "--width=0"): "there is no such file",
        }
        for changes, message in cases.items():
            (door,) = run_here([[*flags, *changes]])
            is_one_line(door, message)

    def test_a_network_of_other_channels_is_refused(self, tmp_path, rng):
        run = FILES / "2.21" / "run"
        np.savez(tmp_path / "colour.npz", images=rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8))
        assert load_source(f"npz:{tmp_path / 'colour.npz'}").train.channels == 3
        command = [
            f"--flagfile={run / 'flags.cfg'}", f"--dataset=npz:{tmp_path / 'colour.npz'}", f"--workdir={tmp_path / 'run'}", "--batch_size=16",
            f"--backbone_weights={run / 'model.weights.h5'}",
        ]  # fmt: skip
        (door,) = run_here([command])
        is_one_line(door, "is of inputs of shape (8, 8, 1), and does not fit inputs of shape (8, 8, 3)")


def trainable(model) -> list[np.ndarray]:
    """The weights of the backbone that steps change, which those of a rate near zero do not."""
    return [read_variable(variable) for variable in cut_at(model, EMBEDDING).trainable_variables]


@pytest.fixture
def continued(finished, tmp_path):
    """A copy of a finished run, the metadata of its newest checkpoint, and its command."""
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    meta = sorted(workdir.glob("checkpoints/*/meta.json"))[-1]
    return workdir, meta, [*SMALL, f"--workdir={workdir}"]
