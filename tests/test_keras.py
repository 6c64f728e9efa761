"""Good manners in somebody else's Keras project: copies, files, interrupted fits, several inputs, the usual mistakes."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import subprocess
import sys
import threading
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import ROOT

import sela_tf
from sela_tf.models.inference import BatchedInference, has_empty_statistics
from sela_tf.settings.training import SelaConfig
from sela_tf.training.labels import label_table
from sela_tf.training.loop import signals_noted

N, K, T = 96, 4, 2


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def values(rng) -> np.ndarray:
    return rng.normal(size=(N, 6)).astype(np.float32)


def make_model(*, normalise: bool = True) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="relu")(inputs)
    if normalise:
        x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, sela_tf.MultiHead(T, K)(x))


def batches(values: np.ndarray, index: np.ndarray | None = None, size: int = 16) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((values, np.arange(len(values)) if index is None else index)).batch(size)


def compiled(table: sela_tf.LabelTable | None, **options) -> keras.Model:
    """Run eagerly where graphs are not what is tested: tracing takes longer than these few steps."""
    model = make_model()
    options = {"run_eagerly": True, **options}
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss=sela_tf.SelfLabelLoss(table), **options)
    model.optimizer.build(model.trainable_variables)
    return model


def by_argmax(logits: sela_tf.LinearLogits, **kwargs) -> sela_tf.Assignment:
    """An `assign` that needs no compilation."""
    return sela_tf.Assignment(logits.log_probs().argmax(axis=1), np.zeros(K))


def table_of(rng) -> sela_tf.LabelTable:
    """A table in whose state nothing is as it was at first."""
    table = sela_tf.LabelTable(T, K, N, seed=5)
    for head in [0, 0, 1]:
        table.assign(head, rng.integers(0, K, N), rng.normal(size=K), lam=7.0 + head)
    return table


def same_state(one: sela_tf.LabelTable, two: sela_tf.LabelTable) -> bool:
    states = one.state(), two.state()
    assert set(states[0]) == set(states[1]) == {"labels", "potentials", "lam", "num_changes", "num_relabellings"}
    return all(np.array_equal(value, states[1][name], equal_nan=name == "lam") for name, value in states[0].items())


class TestLam:
    def test_comes_with_the_potentials(self):
        table = sela_tf.LabelTable(T, K, N)
        assert np.isnan(table.lam).all()
        labels, potentials = np.arange(N) % K, np.zeros(K)
        table.assign(1, labels, potentials, lam=12.5)
        assert table.lam[1] == 12.5
        assert np.isnan(table.lam[0])
        table.assign(1, labels)
        assert table.lam[1] == 12.5
        table.assign(1, labels, potentials)
        assert np.isnan(table.lam[1])
        for arguments in ((potentials, -1.0), (None, 3.0)):
            with pytest.raises(ValueError, match="`lam` must be positive, and come with its potentials"):
                table.assign(0, labels, *arguments)

    def test_a_state_without_it_is_none(self, rng):
        table = table_of(rng)
        before, state = table.state(), table_of(rng).state()
        del state["lam"]
        with pytest.raises(ValueError, match="`lam` of the saved labels must have the shape"):
            table.restore(state)
        assert all(np.array_equal(value, before[name]) for name, value in table.state().items())


class TestFiles:
    def test_a_checkpoint_holds_the_table(self, rng, tmp_path):
        table, twin = table_of(rng), sela_tf.LabelTable(T, K, N)
        path = tf.train.Checkpoint(labels=table).write(str(tmp_path / "checkpoint"))
        tf.train.Checkpoint(labels=twin).read(path).assert_consumed()
        assert same_state(table, twin)
        with pytest.raises(ValueError, match=f"shape \\(2, {N + 1}\\)"):
            tf.train.Checkpoint(labels=sela_tf.LabelTable(T, K, N + 1)).read(path)

    @pytest.mark.parametrize("kind", ["weights", "one of two losses"])
    def test_weights_of_a_compiled_model_hold_the_table(self, rng, tmp_path, kind):
        table, twin = table_of(rng), sela_tf.LabelTable(T, K, N)
        models = [compiled(table), compiled(twin)]
        if kind != "weights":
            for i, labels in enumerate((table, twin)):
                inputs = models[i].input
                models[i] = keras.Model(inputs, {"heads": models[i].output, "other": keras.layers.Dense(2)(inputs)})
                models[i].compile("sgd", loss={"heads": sela_tf.SelfLabelLoss(labels), "other": "mse"})
        models[0].save_weights(tmp_path / "model.weights.h5")
        models[1].load_weights(tmp_path / "model.weights.h5")
        assert same_state(table, twin)

    def test_weights_without_labels_or_of_other_labels_load(self, rng, tmp_path):
        table = table_of(rng)
        model = compiled(table)
        model.save_weights(tmp_path / "with.weights.h5")
        plain = make_model()
        plain.load_weights(tmp_path / "with.weights.h5")
        plain.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss="mse")
        plain.optimizer.build(plain.trainable_variables)
        plain.save_weights(tmp_path / "without.weights.h5")
        twin = table_of(np.random.default_rng(9))
        before = twin.labels
        compiled(twin).load_weights(tmp_path / "without.weights.h5")
        np.testing.assert_array_equal(twin.labels, before)
        other = sela_tf.LabelTable(T, K, N + 1)
        before, into = other.labels, compiled(other)
        with pytest.warns(UserWarning, match=r"another table's.*shape \(2, 97\). Received: \(2, 96\)"):
            into.load_weights(tmp_path / "with.weights.h5")
        np.testing.assert_array_equal(other.labels, before)
        np.testing.assert_array_equal(into.layers[-1].kernel, model.layers[-1].kernel)


class TestCopies:
    @pytest.mark.parametrize("way", ["load_model", "deepcopy", slow("pickle"), slow("clone_model")])
    def test_are_unbound_and_can_be_trained(self, values, tmp_path, way):
        model = compiled(sela_tf.LabelTable(T, K, N))
        model.fit(batches(values), shuffle=False, verbose=0)
        if way == "load_model":
            model.save(tmp_path / "model.keras")
            copied = keras.models.load_model(tmp_path / "model.keras")
        elif way == "clone_model":
            copied = keras.models.clone_model(model)
            copied.set_weights(model.get_weights())
            copied.compile("sgd", loss=sela_tf.SelfLabelLoss.from_config(model.loss.get_config()))
        else:
            copied = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))  # noqa: S301 - its own
        np.testing.assert_array_equal(copied.predict(values, verbose=0), model.predict(values, verbose=0))
        assert copied.loss.labels is None
        with pytest.raises(ValueError, match="bind a LabelTable: loss.labels = table"):
            copied.evaluate(batches(values), verbose=0)
        table = sela_tf.LabelTable(T, K, N)
        copied.fit(
            batches(values), shuffle=False, verbose=0, callbacks=[sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0])]
        )
        assert copied.loss.labels is table


class Power(keras.callbacks.Callback):
    """Fails in the middle of an epoch."""

    def __init__(self, fails_in_epoch: int | None):
        super().__init__()
        self.fails_in_epoch, self.epoch = fails_in_epoch, -1

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.fails_in_epoch and batch == 2:
            raise RuntimeError("power cut")


class TestBackupAndRestore:
    @pytest.mark.parametrize("backup_first", [True, False])
    def test_labels_come_back_and_training_goes_on(self, values, tmp_path, backup_first):
        """The loss of every later epoch, all labels and potentials, and the weights, as without the stop."""

        def fit(directory, fails_in_epoch=None):
            table = sela_tf.LabelTable(T, K, N, seed=2)
            steps: list[int] = []
            labelling = sela_tf.SelfLabelling(
                table, batches(values), relabel_steps=[0, 9, 20], log=lambda step, heads: steps.append(step)
            )
            backup = keras.callbacks.BackupAndRestore(directory)
            both = [backup, labelling] if backup_first else [labelling, backup]
            model = compiled(table)
            cut = contextlib.nullcontext() if fails_in_epoch is None else pytest.raises(RuntimeError, match="power cut")
            with cut:
                model.fit(batches(values), epochs=4, shuffle=False, verbose=0, callbacks=[*both, Power(fails_in_epoch)])
            return table, steps, model

        whole, _, model = fit(tmp_path / "whole")
        _, steps, _ = fit(tmp_path / "cut", fails_in_epoch=2)
        assert steps == [0, 9]
        table, steps, continued = fit(tmp_path / "cut")
        assert steps == [20]
        losses = model.history.history["loss"]
        assert continued.history.history["loss"] == pytest.approx(losses[2:], rel=1e-5)
        assert same_state(table, whole)
        for a, b in zip(continued.weights, model.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_a_table_that_missed_its_relabellings_is_relabelled_at_once(self, values):
        model = compiled(None)
        model.optimizer.iterations.assign(40)
        table, steps = sela_tf.LabelTable(T, K, N), []
        labelling = sela_tf.SelfLabelling(
            table, batches(values), relabel_steps=[0, 9, 43], log=lambda step, heads: steps.append(step)
        )
        model.fit(batches(values), shuffle=False, verbose=0, callbacks=[labelling])
        assert steps == [40, 43]


class TestMistakes:
    def fit(self, values, index, *, compile=None, labelling=None, **options) -> sela_tf.LabelTable:
        table = sela_tf.LabelTable(T, K, len(values))
        model = compiled(table, **(compile or {}))
        callback = sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0], assign=by_argmax, **(labelling or {}))
        dataset = index if isinstance(index, tf.data.Dataset) else batches(values, index)
        model.fit(dataset, shuffle=False, verbose=0, callbacks=[callback], **options)
        return table

    @pytest.mark.parametrize(("xla", "num_classes"), [(False, 10), slow(True, 2)])
    def test_class_labels_for_indices(self, rng, xla, num_classes):
        values = rng.normal(size=(320, 6)).astype(np.float32)
        with pytest.raises(ValueError, match=f"about {num_classes} different indices for 320 images.*not its class label"):
            self.fit(values, rng.integers(0, num_classes, 320), compile={"jit_compile": xla, "run_eagerly": False})

    @pytest.mark.parametrize(
        ("num_examples", "drawn", "few"),
        [
            (1797, lambda rng: rng.permutation(1797), False),
            (50_000, lambda rng: rng.permutation(50_000)[:640], False),  # steps_per_epoch=10
            (50_000, lambda rng: np.arange(640), False),
            (1_281_167, lambda rng: np.arange(0, 1_281_167, 64), False),  # one of 64 workers
            (50_000, lambda rng: rng.integers(0, 50_000, 50_000), False),
            (4, lambda rng: np.arange(400) % 4, False),
            (16, lambda rng: rng.integers(0, 16, 16), False),
            (1000, lambda rng: np.repeat(rng.permutation(1000)[:100], 8), False),  # eight views of each
            # nine of ten draws from a hundredth of the images
            (10_000, lambda rng: np.where(rng.random(10_000) < 0.9, rng.integers(0, 100, 10_000), rng.integers(0, 10_000, 10_000)), False),
            (5000, lambda rng: np.tile(rng.permutation(5000)[:64], 100), False),  # one batch, to see whether it can be learned
            (1797, lambda rng: rng.integers(0, 10, 1797), True),
            (50_000, lambda rng: rng.integers(0, 100, 640), False),  # too few draws to know
            (50_000, lambda rng: rng.integers(0, 100, 50_000), True),
            (5994, lambda rng: rng.integers(0, 200, 5994), True),  # CUB-200
            (1_281_167, lambda rng: rng.integers(1, 1001, 1_281_167), True),  # ImageNet's, from 1
        ],
    )  # fmt: skip
    def test_few_indices_are_told_from_many(self, rng, num_examples, drawn, few):
        table = sela_tf.LabelTable(1, 2, num_examples)
        index = drawn(rng)
        for part in np.array_split(index, max(len(index) // 10_000, 1)):
            table.lookup(tf.constant(part, tf.int64))
        assert table.num_drawn == len(index)
        assert (table.few_indices is not None) == few
        if few:
            assert table.few_indices == pytest.approx(len(np.unique(index)), rel=0.2)
        table.forget_lookups()
        assert table.num_drawn == 0

    def test_lam_beside_assign(self, values):
        table = sela_tf.LabelTable(T, K, N)
        with pytest.raises(ValueError, match="give one of them. Received: lam=10"):
            sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0], lam=10, assign=sela_tf.assign_labels)

    def test_validation_on_other_images(self, values):
        seen = []
        log = {"log": lambda step, heads: seen.append(step)}
        with pytest.raises(ValueError, match="`validation_data` of `fit` have no labels.*validation_shows_training_images=True"):
            self.fit(values, None, validation_data=batches(values[:20]), labelling=log)
        assert seen == []
        allowed = {"validation_shows_training_images": True}
        self.fit(values, None, validation_data=batches(values[:20]), labelling=allowed)
        with pytest.raises(ValueError, match=f"`validation_data` yielded the example index {N}, outside"):
            self.fit(values, None, validation_data=batches(values[:20], np.arange(20) + N - 19), labelling=allowed)

    def test_a_callback_list_that_validates_is_refused_too(self, values):
        """Another loop than `fit` may validate so."""
        table = sela_tf.LabelTable(T, K, N)
        labelling = sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0])
        hooks = keras.callbacks.CallbackList([labelling], model=compiled(table))
        hooks.on_test_begin()
        hooks.on_train_begin()
        with pytest.raises(ValueError, match="`validation_data`"):
            hooks.on_test_begin()

    def test_an_evaluation_in_between_is_not_blamed_on_training(self, values):
        """Somebody's own callback meets an index outside; training, which diverges later, is told of its learning rate."""
        table = sela_tf.LabelTable(T, K, N)
        model = compiled(table)
        others = batches(values[:20], np.arange(20) + N)

        def look(epoch, logs):
            self_evaluated.append(model.evaluate(others, verbose=0))
            model.optimizer.learning_rate = 1e30

        self_evaluated: list[float] = []
        callbacks = [
            keras.callbacks.LambdaCallback(on_epoch_end=look),
            sela_tf.SelfLabelling(table, batches(values), relabel_steps=[]),
        ]
        with pytest.raises(ValueError, match="diverged. Lower the learning rate"):
            model.fit(batches(values), epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
        assert np.isnan(self_evaluated[0])

    def test_told_once(self, values):
        with pytest.warns(UserWarning, match="`class_weight` of `fit`") as told, pytest.raises(tf.errors.InvalidArgumentError):
            self.fit(values, None, class_weight={0: 1.0, 1: 2.0})
        assert len([one for one in told if one.category is UserWarning]) == 1
        metric = keras.metrics.MeanMetricWrapper(lambda index, logits: tf.reduce_mean(logits, axis=[1, 2]), name="mean")
        with pytest.warns(UserWarning, match="`metrics` of `compile`") as told:
            self.fit(values, None, compile={"metrics": [metric]})
        assert len(told) == 1


class TestSilence:
    @pytest.mark.parametrize(("told", "own", "lines"), [(0, None, False), (2, None, True), slow(0, 1, True), slow(2, 0, False)])
    def test_as_fit_or_the_callback_was_told(self, values, capsys, told, own, lines):
        table = sela_tf.LabelTable(T, K, N)
        callbacks = [
            sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0], assign=by_argmax, verbose=own),
            sela_tf.CollapseDoctor(table, verbose=own),
        ]
        model = compiled(table)
        model.optimizer.learning_rate = 1e-9
        model.fit(batches(values), epochs=2, shuffle=False, verbose=told, callbacks=callbacks)
        out, err = capsys.readouterr()
        assert ("relabel step 0" in out) == ("WARNING after epoch 2" in out) == lines
        assert [finding.kind for finding in callbacks[1].findings] == ["loss"]
        if not told and not lines:
            assert out == err == ""


class TestStatistics:
    def test_empty_until_the_first_step_or_weights(self, values):
        model = make_model()
        assert has_empty_statistics(model)
        within = keras.Sequential([keras.Input((6,)), model])
        assert has_empty_statistics(within)
        model(values, training=True)
        assert not has_empty_statistics(model)
        assert not has_empty_statistics(within)
        assert not has_empty_statistics(make_model(normalise=False))

        class Block(keras.layers.Layer):
            def __init__(self):
                super().__init__()
                self.norm = keras.layers.BatchNormalization()

            def call(self, inputs, training=None):
                return self.norm(inputs, training=training)

        inputs = keras.Input((6,))
        hidden = keras.Model(inputs, Block()(inputs))
        assert has_empty_statistics(hidden)
        hidden(values, training=True)
        assert not has_empty_statistics(hidden)

    def test_the_first_pass_of_a_network_that_starts_from_weights_is_in_inference_mode(self, values):
        """Its labels are those of its predictions, dropout or not."""
        inputs = keras.Input((6,))
        x = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(keras.layers.Dense(8)(inputs)))
        model = keras.Model(inputs, sela_tf.MultiHead(T, K)(x))
        model.layers[-1].kernel.assign(10 * np.asarray(model.layers[-1].kernel))
        for _ in range(30):
            model(values, training=True)
        table = sela_tf.LabelTable(T, K, N)
        model.compile("sgd", loss=sela_tf.SelfLabelLoss(table))
        labelling = sela_tf.SelfLabelling(table, batches(values), relabel_steps=[0], verbose=0)
        labelling.set_model(model)
        labelling.on_train_begin()
        labelling.on_train_batch_begin(0)
        log_probs = tf.nn.log_softmax(model.predict(values, verbose=0)).numpy()
        for head in range(T):
            expected = sela_tf.assign_labels(log_probs[:, head], lam=25.0)
            np.testing.assert_array_equal(table.labels[head], expected.labels)


@pytest.mark.parametrize("kind", [slow("list"), slow("tuple"), "dict"])
def test_several_inputs(values, tmp_path, kind):
    """Training, label pass, monitors, doctor: a model of two inputs is one of them side by side."""
    parts = values[:, :2], values[:, 2:]
    inputs = [keras.Input((2,), name="right"), keras.Input((4,), name="left")]
    structured = {"list": list, "tuple": tuple, "dict": lambda both: dict(zip(("right", "left"), both, strict=True))}[kind]
    x = keras.layers.Dense(8, name="features")(keras.layers.Concatenate()(inputs))
    keras.utils.set_random_seed(3)
    model = keras.Model(structured(inputs), sela_tf.MultiHead(T, K)(x))
    # a list becomes one tensor in tf.data
    images = tf.data.Dataset.from_tensor_slices(structured(parts) if kind == "dict" else parts)
    dataset = tf.data.Dataset.zip((images, tf.data.Dataset.range(N))).batch(16)
    table = sela_tf.LabelTable(T, K, N)
    model.compile("sgd", loss=sela_tf.SelfLabelLoss(table))
    classes = np.arange(N) % 3
    doctor = sela_tf.CollapseDoctor(table, sample=dataset)
    callbacks = [
        sela_tf.SelfLabelling(table, dataset, relabel_steps=[0]),
        sela_tf.KNNMonitor("features", train_batches=dataset, train_classes=classes, eval_batches=dataset, eval_classes=classes),
        sela_tf.ClusterMonitor(table, tmp_path, sample=dataset),
        doctor,
    ]
    history = model.fit(dataset, shuffle=False, verbose=0, callbacks=callbacks).history
    assert {"knn", "network_clusters_in_use"} <= set(history)
    features = keras.Model(model.input, x)
    extractor = BatchedInference(features)
    expected = features(structured([tf.constant(part) for part in parts])).numpy()
    np.testing.assert_allclose(extractor.collect(dataset, N), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(extractor.in_order(dataset), expected, rtol=1e-5, atol=1e-6)
    extractor.settle(dataset, num_batches=2)
    for head, log_probs in sela_tf.head_log_probs(model, dataset, num_examples=N):
        logits = tf.nn.log_softmax(model.predict(dataset, verbose=0)).numpy()[:, head]
        np.testing.assert_allclose(log_probs, logits, atol=1e-5)


_TWO_DEVICES = """
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import sela_tf
from sela_tf.settings.training import SelaConfig
from sela_tf.training.loop import step_function
from sela_tf.models.inference import BatchedInference

N, K, T = 997, 4, 2
values = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    inputs = keras.Input((6,))
    # of no image, a convolution puts out another shape
    x = keras.layers.Conv2D(8, (3, 1))(keras.layers.Reshape((6, 1, 1))(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.BatchNormalization(synchronized=True)(x)
    model = keras.Model(inputs, sela_tf.MultiHead(T, K)(x))
    table = sela_tf.LabelTable(T, K, N)
    model.compile(keras.optimizers.SGD(0.0), loss=sela_tf.SelfLabelLoss(table))
    model.optimizer.build(model.trainable_variables)

# each replica reads the labels that were assigned, and its half of the batch
new = np.random.default_rng(1).integers(0, K, (T, N))
for head in range(T):
    table.assign(head, new[head])
index = np.array([3, 996, 5, 0, 7, 7, 12, 500])
halves = strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(index[4 * context.replica_id_in_sync_group :][:4])
)
found = strategy.experimental_local_results(tf.function(lambda: strategy.run(table.lookup, args=(halves,)))())
np.testing.assert_array_equal(np.concatenate(found), new[:, index].T)
assert table.num_drawn == 8 and table.index_outside is None, table.num_drawn
np.testing.assert_array_equal(table.labels, new)

# in the training step a tensor of all labels is only ever the variable itself, read and gathered from on its own device
batches = tf.data.Dataset.from_tensor_slices((values, np.arange(N))).batch(16, drop_remainder=True)
step = step_function(model, strategy, xla=False)
batch = next(iter(strategy.experimental_distribute_dataset(batches)))
graph = step.get_concrete_function(batch).graph
lies_on = {inner.name: variable.device for variable, inner in graph.captures}
whole = [output for each in graph.get_operations() for output in each.outputs if output.shape.rank and N in output.shape]
assert {output.op.type for output in whole} == {"ReadVariableOp"}, whole
ways = {(lies_on[output.op.inputs[0].name], reader.device) for output in whole for reader in output.consumers()}
assert len(ways) == 2 and all(there == here for there, here in ways), ways

# a pass in batches of one image, or of three: rows are those of the whole, with statistics of the batch, too
features = BatchedInference(keras.Model(model.input, x), strategy)
some = tf.data.Dataset.from_tensor_slices((values[:7], np.arange(7)))
expected = features.model(values[:7]).numpy()
for size in (1, 3):
    np.testing.assert_allclose(features.collect(some.batch(size), 7), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features.in_order(some.batch(size)), expected, rtol=1e-5, atol=1e-6)
assert np.isfinite(features.collect(some.batch(1), 7, batch_statistics=True)).all()
features.settle(some.batch(1), num_batches=3)

# class labels are noticed over all replicas
classes = tf.data.Dataset.from_tensor_slices((values, np.arange(N) % 5)).batch(16)
labelling = sela_tf.SelfLabelling(table, batches, relabel_steps=[])
try:
    model.fit(classes, shuffle=False, verbose=0, callbacks=[labelling])
    raise SystemExit("not noticed")
except ValueError as error:
    assert "about 5 different indices for 997 images" in str(error), error
"""


@pytest.mark.slow
def test_two_devices():
    done = run_python(_TWO_DEVICES)
    assert done.returncode == 0, done.stderr


def test_the_recipe_makes_its_table_in_the_scope_of_the_devices():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    config = SelaConfig(dataset="digits", num_heads=T, num_clusters=K, seed=3)
    table = label_table(config, types.SimpleNamespace(train=range(N)), strategy)
    assert isinstance(table._variable, tf.distribute.DistributedValues)
    np.testing.assert_array_equal(table.labels, sela_tf.LabelTable(T, K, N, seed=3).labels)
    with strategy.scope():
        # outside the replicas, as Keras builds a compiled model
        found = table.lookup(tf.constant([5, 6], tf.int64))
    np.testing.assert_array_equal(found, table.labels[:, 5:7].T)
    assert table.num_drawn == 0


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False, env={**os.environ, **environment},
    )  # fmt: skip


class TestRegistration:
    @pytest.mark.parametrize(
        "imports",
        [
            "import sela_tf, importlib.util; importlib.util.find_spec('keras'); import keras",
            *map(
                slow,
                [
                    "import keras, sela_tf",
                    "import sela_tf, tensorflow as tf; keras = tf.keras",
                    "import tensorflow as tf, sela_tf; keras = tf.keras",
                    "import sela_tf; from keras import models; import keras",
                    "import sela_tf; sela_tf.MultiHead; import keras",
                ],
            ),
        ],
    )
    def test_a_fresh_process_loads_a_model(self, tmp_path, imports):
        path = str(tmp_path / "model.keras")
        compiled(sela_tf.LabelTable(T, K, N)).save(path)
        done = run_python(
            f"{imports}; import sys; before = len(sys.meta_path); keras.models.load_model({path!r}, compile=False); "
            f"model = keras.models.load_model({path!r}); print(type(model.loss).__name__, model.loss.labels); "
            "assert not any(type(finder).__module__ == 'sela_tf.compat.keras_registration' for finder in sys.meta_path)"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "SelfLabelLoss None\n"


class TestOtherBackends:
    def test_are_refused_by_every_door_before_anything_is_loaded(self):
        code = (
            "import sys\n"
            "for door, own in [('train', ['--dataset=digits']), ('probe', []), ('export', ['--export_dir=/tmp/none']), ('label', ['--output=/tmp/none.csv'])]:\n"
            "    main = __import__(f'sela_tf.{door}', fromlist=['main']).main\n"
            "    print(main([door, '--workdir=/tmp/none', *own]))\n"
            "print(sorted({'tensorflow', 'keras', 'jax'} & set(sys.modules)))"
        )
        done = run_python(code, KERAS_BACKEND="jax")
        assert done.stdout.splitlines() == ["2"] * 4 + ["[]"], done
        lines = done.stderr.splitlines()
        assert [line.split(": ")[0] for line in lines] == [f"sela_tf.{door}" for door in ("train", "probe", "export", "label")]
        assert all(": error: KERAS_BACKEND=jax: " in line and "set KERAS_BACKEND=tensorflow" in line for line in lines)

    @pytest.mark.slow
    def test_are_refused_by_the_names_that_need_keras(self):
        code = (
            "import sela_tf\n"
            "for name in sela_tf.__all__:\n"
            "    try:\n"
            "        getattr(sela_tf, name)\n"
            "    except ImportError as error:\n"
            "        assert 'KERAS_BACKEND=torch' in str(error) and 'set KERAS_BACKEND=tensorflow' in str(error), error\n"
            "    else:\n"
            "        print(name)"
        )
        done = run_python(code, KERAS_BACKEND="torch")
        assert done.returncode == 0, done.stderr
        assert set(done.stdout.split()) == {
            "Assignment", "BalancedLabels", "ConfigError", "ExportConfig", "LabelConfig", "LabelTable", "LinearLogits", "ProbeConfig",
            "SelaConfig", "SinkhornResult", "SourceError",
            "__version__", "assign_labels", "balanced_labels", "relabel_steps", "sinkhorn",
        }  # fmt: skip

    def test_that_a_configuration_file_names(self, tmp_path):
        """Keras itself loads; a stand-in here, as its other backends need packages that are not installed."""
        (tmp_path / "keras.py").write_text("import types\nconfig = types.SimpleNamespace(backend=lambda: 'jax')\n")
        done = run_python(
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sela_tf, keras; print('loaded'); sela_tf.MultiHead"
        )
        assert done.stdout == "loaded\n"
        assert "ImportError: sela_tf.MultiHead: Keras runs on jax" in done.stderr
        assert "set KERAS_BACKEND=tensorflow" in done.stderr


def test_signals_are_left_to_the_main_thread():
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with signals_noted() as stop:
                assert stop.signal_number is None
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


@pytest.mark.slow
def test_a_run_in_a_thread(tmp_path):
    settings = (
        "dataset='digits', backbone='resnet8', width=8, num_heads=2, num_clusters=16, batch_size=64, epochs=1, learning_rate=0.1, "
        "num_relabellings=2, report=False"
    )
    work = f"found.append(sela_tf.run(sela_tf.SelaConfig({settings}), {str(tmp_path / 'run')!r}))"
    done = run_python(
        "import threading, sela_tf; found = []\n"
        f"thread = threading.Thread(target=lambda: {work}); thread.start(); thread.join(); print(found[0]['trained']['knn'])"
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 0.5
