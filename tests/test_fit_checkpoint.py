"""A user's own `fit` with `sela_tf.Checkpoint`: killed and run again, continued in the process, and what is refused."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import ROOT
from kept_fit import EPOCHS, STEPS, Luck, batches_of, make, train
from user_model import K, N, T, slow_but_on_lanes

import sela_tf
from sela_tf.compat.releases import IS_KERAS_3
from sela_tf.files import saves

PROGRAM = ROOT / "tests" / "kept_fit.py"
# The start, then the end of each epoch: each save renames once, and its files reach the disk before and the directory after that.
MOMENTS = ["batch:2:3", "rename:3", "end"]


@pytest.fixture(autouse=True, scope="module")
def the_disk_is_not_waited_for():
    """In this process, which nothing kills; the programs that are killed wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


class CutError(RuntimeError):
    """A stop in the middle of an epoch, which leaves the process."""


def cut(*_: object, **__: object) -> None:
    raise CutError


def stop(model: keras.Model) -> None:
    model.stop_training = True


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The contents at the end of a training that nothing stops."""
    return train(make(tmp_path_factory.mktemp("whole")), Luck()).contents()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The directory of a training of one epoch."""
    directory = tmp_path_factory.mktemp("begun")
    train(make(directory), epochs=1)
    return directory


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    # The lanes leave out the directory of a program.
    path = os.pathsep.join([str(PROGRAM.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)


def contents_of(directory: pathlib.Path, **environment: str) -> dict:
    """Runs the program to its end; returns what it ends with."""
    done = run(directory / "fit", directory / "contents.json", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads((directory / "contents.json").read_text())


@pytest.fixture(scope="module")
def whole_program(tmp_path_factory) -> dict:
    return contents_of(tmp_path_factory.mktemp("whole_program"))


@pytest.mark.slow
@pytest.mark.lane
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_program_ends_as_one_that_was_not(whole_program, tmp_path, moment):
    """Compiled, with dropout: weights, statistics, momenta, labels, counts, logs, findings, and NumPy's draws."""
    killed = run(tmp_path / "fit", tmp_path / "contents.json", moment)
    assert (killed.returncode, (tmp_path / "contents.json").exists()) == (-9, False), killed.stderr
    assert contents_of(tmp_path) == whole_program
    assert sorted((tmp_path / "fit" / "saves").iterdir())[-1].name == f"step-{EPOCHS:08d}"


@pytest.mark.slow
@pytest.mark.lane
def test_on_two_devices(tmp_path):
    """Each has statistics of batch normalisation of its own, and in Keras 2 random generators."""
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    killed = run(tmp_path / "cut" / "fit", tmp_path / "cut" / "contents.json", "batch:2:3", TWO_DEVICES="1")
    assert killed.returncode == -9, killed.stderr
    assert contents_of(tmp_path / "cut", TWO_DEVICES="1") == contents_of(tmp_path / "whole", TWO_DEVICES="1")


class TestContinued:
    def test_in_the_middle_of_an_epoch(self, whole, tmp_path):
        with pytest.raises(CutError):
            train(make(tmp_path), Luck((2, 1), cut))
        made = make(tmp_path)
        assert (made.checkpoint.epoch, made.checkpoint.logs) == (2, whole["logs"][:2])
        assert train(made, Luck()).contents() == whole

    def test_in_the_first_epoch_from_the_weights_that_it_began_with(self, whole, tmp_path):
        with pytest.raises(CutError):
            train(make(tmp_path), Luck((0, 1), cut))
        made = make(tmp_path)
        for weight in made.model.weights:
            weight.assign(tf.zeros_like(weight))
        assert train(made, Luck()).contents() == whole

    def test_a_finished_one_is_put_back(self, whole, tmp_path):
        train(make(tmp_path), Luck())
        again = train(make(tmp_path), Luck())
        assert (again.contents(), again.model.history.epoch) == (whole, [])

    def test_in_the_same_process(self, whole, tmp_path):
        """An unfinished epoch is undone; a saved state is left alone."""
        made = train(make(tmp_path), Luck(), epochs=2)
        made.model.layers[1].bias.assign(tf.ones(8))
        train(made, Luck(), epochs=2)
        np.testing.assert_array_equal(made.model.layers[1].bias, np.ones(8))
        with pytest.raises(CutError):
            train(made, Luck((2, 1), cut))
        assert train(made, Luck()).contents() == whole

    @pytest.mark.parametrize("batch", [0, STEPS - 1])
    def test_stopped_by_a_callback(self, whole, tmp_path, batch):
        """Within an epoch, which is not saved; at its last step, it is."""
        stopped = train(make(tmp_path), Luck((1, batch), stop))
        assert stopped.checkpoint.epoch == (2 if batch else 1)
        assert train(make(tmp_path), Luck()).contents() == whole

    def test_relabellings_passed_over_are_made_up_for(self, tmp_path):
        """A relabelling became due in the last step of an epoch, as with `steps_per_execution`."""
        made = make(tmp_path)
        (labelling,) = made.callbacks
        labelling.set_model(made.model)
        made.labels.num_relabellings[:] = 1
        made.model.optimizer.iterations.assign(8)
        labelling._pending = [7, 15, 22]
        state = labelling.state()
        twin = make(tmp_path)
        (restored,) = twin.callbacks
        restored.set_model(twin.model)
        restored.on_train_begin()
        restored.restore(state)
        assert restored._to_come(8) == [7, 15, 22]
        restored.on_train_begin()
        twin.labels.num_relabellings[:] = 1
        assert restored._to_come(8) == [15, 22]


class TestLearningRate:
    def test_a_lower_one_is_taken(self, begun, tmp_path, capsys):
        copy_of(begun, tmp_path)
        made = make(tmp_path, optimizer=keras.optimizers.SGD(0.01, momentum=0.9))
        train(made, epochs=1)
        assert float(tf.convert_to_tensor(made.model.optimizer.learning_rate)) == pytest.approx(0.01)

    def test_what_is_not_finite_is_not_saved(self, begun, tmp_path):
        copy_of(begun, tmp_path)
        made = make(tmp_path)

        def spoil(*_):
            made.model.layers[1].kernel.assign(tf.fill([6, 8], np.inf))

        with pytest.raises(
            sela_tf.models.finite.DivergedError, match=r"1 of \d+ arrays are not finite after 2 epochs, first .*kernel"
        ):
            train(made, keras.callbacks.LambdaCallback(on_epoch_end=spoil))
        assert saves.load_newest(tmp_path / "saves")[0].meta["epoch"] == 1


def copy_of(begun: pathlib.Path, directory: pathlib.Path) -> None:
    shutil.copytree(begun / "saves", directory / "saves")


class TestRefusals:
    @pytest.mark.parametrize("initial_epoch", [0, 2])
    def test_another_epoch(self, begun, tmp_path, initial_epoch):
        copy_of(begun, tmp_path)
        with pytest.raises(
            ValueError, match=f"begins with epoch {initial_epoch}.*of the start of epoch 1.*initial_epoch=checkpoint.epoch"
        ):
            train(make(tmp_path), initial_epoch=initial_epoch)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"width": 9}, r"model's .*kernel.* of shape \(6, 8\), now \(6, 9\)"),
            ({"dropout": False}, "variables of the" if IS_KERAS_3 else "variables of the generators"),
            ({"optimizer": "adam"}, "has optimizer SGD, now Adam"),
            (
                {"optimizer": keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True)},
                r"it has \d+ variables of the optimizer, now \d+",
            ),
            ({"labels": sela_tf.LabelTable(T, K, N + 1)}, rf"`labels` of the saved labels must have the shape \(2, {N + 1}\)"),
        ],
    )
    def test_another_training(self, begun, tmp_path, change, message):
        copy_of(begun, tmp_path)
        made = make(tmp_path, **change)
        before = made.contents()["model"]
        with pytest.raises(ValueError, match=f"save of another training: .*{message}.*name another directory"):
            train(made)
        assert made.contents()["model"] == before

    def test_other_parts(self, begun, tmp_path):
        copy_of(begun, tmp_path)
        made = make(tmp_path)
        more = made._replace(checkpoint=sela_tf.Checkpoint(tmp_path / "saves", [*made.callbacks, made.labels]))
        with pytest.raises(ValueError, match=r"it has parts \['SelfLabelling'\], now \['SelfLabelling', 'LabelTable'\]"):
            train(more)

    def test_parts_that_are_not_before_it(self, tmp_path):
        made = make(tmp_path)
        for callbacks in ([made.checkpoint], [made.checkpoint, *made.callbacks]):
            with pytest.raises(ValueError, match="must have all `parts`, and Checkpoint after them. Not before it: SelfLabelling"):
                made.model.fit(batches_of(tf.constant(0)), shuffle=False, verbose=0, callbacks=callbacks)

    def test_a_table_that_nobody_saves(self, tmp_path):
        """A monitor that has the table does not save it."""
        made = make(tmp_path)
        monitor = sela_tf.ClusterMonitor(made.labels, tmp_path / "tensorboard")
        alone = made._replace(checkpoint=sela_tf.Checkpoint(tmp_path / "saves", [monitor]))
        with pytest.raises(ValueError, match="reads a LabelTable that `parts` has not"):
            train(alone, monitor)
        assert not (tmp_path / "saves").exists()

    @pytest.mark.parametrize("callback", [keras.callbacks.EarlyStopping(), keras.callbacks.ReduceLROnPlateau()])
    def test_callbacks_that_count_and_cannot_be_saved(self, tmp_path, callback):
        with pytest.raises(ValueError, match=f"begins anew in a continued fit. Received: {type(callback).__name__}"):
            sela_tf.Checkpoint(tmp_path, [callback])

    @pytest.mark.filterwarnings("ignore:Your input ran out of data")
    def test_data_that_run_out(self, tmp_path):
        message = f"epoch 0 ended after 2 of {STEPS} steps, because the data ran out"
        with pytest.raises(ValueError, match=message):
            train(make(tmp_path), data=batches_of(tf.constant(0)).take(2))

    def test_only_damaged_saves(self, begun, tmp_path, capsys):
        copy_of(begun, tmp_path)
        newest, oldest = sorted((tmp_path / "saves").iterdir(), reverse=True)
        (newest / "state.npz").write_bytes(b"")
        assert make(tmp_path).checkpoint.epoch == 0
        assert "save passed over: step-00000001 is damaged" in capsys.readouterr().out
        (oldest / "state.npz").write_bytes(b"")
        with pytest.raises(ValueError, match="all saves are damaged"):
            make(tmp_path)

    def test_saves_of_a_run(self, tmp_path):
        saves.save(tmp_path, 3, {"a": np.zeros(2)}, {}, keep=2)
        with pytest.raises(ValueError, match="not of a `fit`"):
            sela_tf.Checkpoint(tmp_path, [])

    @pytest.mark.parametrize("keep", [0, -1])
    def test_keeping_none(self, tmp_path, keep):
        with pytest.raises(ValueError, match="`keep` must be at least 1"):
            sela_tf.Checkpoint(tmp_path, [], keep=keep)

    @pytest.mark.parametrize("kind", ["normal", slow_but_on_lanes("uniform")])
    def test_draws_whose_state_tensorflow_keeps(self, tmp_path, kind):
        """In a compiled step; the save of the start is there, and that of an epoch is not."""

        @keras.saving.register_keras_serializable("tests")
        class Noise(keras.layers.Layer):
            def call(self, inputs):
                return inputs + getattr(tf.random, kind)(tf.shape(inputs))

        inputs = keras.Input((6,))
        model = keras.Model(inputs, sela_tf.MultiHead(T, K)(Noise(name="noise")(inputs)))
        labels = sela_tf.LabelTable(T, K, N)
        model.compile("sgd", loss=sela_tf.SelfLabelLoss(labels))
        checkpoint = sela_tf.Checkpoint(tmp_path, [labels])
        with pytest.raises(ValueError, match=r"random numbers whose state TensorFlow does not give, in .*noise.*SeedGenerator"):
            model.fit(batches_of(tf.constant(0)), shuffle=False, verbose=0, callbacks=[checkpoint])
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000000"]
