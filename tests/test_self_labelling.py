"""Label table, loss, schedule, label pass, and the callback in a user's own `fit`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

from sela_tf.models.build import with_rotation_head
from sela_tf.models.heads import MultiHead, find_multi_head
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.label_pass import head_log_probs, relabel
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.self_labelling.loss import SelfLabelLoss
from sela_tf.self_labelling.schedule import relabel_steps
from sela_tf.transport.assignment import Assignment, assign_labels
from sela_tf.transport.sinkhorn import sinkhorn

N, K, T = 96, 4, 2


@pytest.fixture
def values(rng) -> np.ndarray:
    return rng.normal(size=(N, 6)).astype(np.float32)


def features_and_heads(model: keras.Model, values: np.ndarray) -> tuple[np.ndarray, MultiHead]:
    heads = find_multi_head(model)
    return keras.Model(model.input, heads.input)(values).numpy(), heads


def make_model(*, normalise: bool = True) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="relu")(inputs)
    if normalise:
        x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, MultiHead(T, K)(x))


def batches(values: np.ndarray, size: int = 16) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((values, np.arange(len(values)))).batch(size)


class TestLabelTable:
    def test_starts_balanced_and_different_for_each_head(self):
        labels = LabelTable(3, 5, 23, seed=0).labels
        assert labels.shape == (3, 23)
        for head in labels:
            assert set(np.bincount(head)) == {4, 5}
        assert (labels[0] != labels[1]).any()
        np.testing.assert_array_equal(labels, LabelTable(3, 5, 23, seed=0).labels)
        assert (labels != LabelTable(3, 5, 23, seed=1).labels).any()

    def test_assign_counts_changes_after_the_initial_labels(self):
        table = LabelTable(1, 2, 4)
        table.assign(0, np.array([0, 0, 1, 1]), np.array([0.5, -0.5]))
        assert table.num_changes.tolist() == [[0, 0, 0, 0]]
        table.assign(0, np.array([0, 1, 1, 0]))
        assert table.num_changes.tolist() == [[0, 1, 0, 1]]
        assert table.potentials.tolist() == [[0.5, -0.5]]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((2, np.array([0, 1, 0, 1])), "head=2"),
            ((0, np.array([0, 1, 0])), r"\(3,\)"),
            ((0, np.array([0, 1, 0, 2])), "Received: 2"),
            ((0, np.array([0, 1, 0, -1])), "Received: -1"),
            ((0, np.array([0.0, 1.0, 0.0, 1.0])), "float64"),
            ((0, np.array([0, 1, 0, 1]), np.array([np.nan, 0.0])), "finite"),
        ],
    )
    def test_assign_refuses_and_leaves_the_table(self, arguments, message):
        table = LabelTable(1, 2, 4)
        before = table.labels
        with pytest.raises(ValueError, match=message):
            table.assign(*arguments)
        np.testing.assert_array_equal(table.labels, before)

    def test_refuses_more_clusters_than_images(self):
        with pytest.raises(ValueError, match="num_clusters=5, num_examples=4"):
            LabelTable(1, 5, 4)

    def test_state_round_trip(self):
        table, twin = LabelTable(2, 3, 9, seed=0), LabelTable(2, 3, 9, seed=5)
        table.assign(1, np.arange(9) % 3, np.array([1.0, 0.0, -1.0]))
        twin.restore(table.state())
        for name, value in table.state().items():
            np.testing.assert_array_equal(twin.state()[name], value)
        for other in (LabelTable(2, 3, 10), LabelTable(2, 2, 9)):
            before = other.labels
            with pytest.raises(ValueError, match="saved labels"):
                other.restore(table.state())
            np.testing.assert_array_equal(other.labels, before)

    def test_may_start_from_labels_that_are_given(self, rng):
        given = rng.integers(0, K, (T, N))
        np.testing.assert_array_equal(LabelTable(T, K, N, initial=given).labels, given)
        with pytest.raises(ValueError, match=f"from 0 to {K - 1}. Received: .* to {K}"):
            LabelTable(T, K, N, initial=np.full((T, N), K))
        with pytest.raises(ValueError, match="`initial` must be integers"):
            LabelTable(T, K, N, initial=given[:, :-1])


class TestSelfLabelLoss:
    def test_is_the_mean_cross_entropy_of_the_heads(self, rng):
        table = LabelTable(T, K, N)
        logits = rng.normal(size=(10, T, K)).astype(np.float32)
        index = rng.integers(0, N, 10)
        log_probs = np.log(np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True))
        expected = -np.mean([[log_probs[b, t, table.labels[t, index[b]]] for t in range(T)] for b in range(10)])
        assert float(SelfLabelLoss(table)(index, logits)) == pytest.approx(expected, rel=1e-5)

    def test_indices_beyond_float32_are_exact(self):
        """2**24 + 1 is no float32: the neighbour's label would be taken."""
        num_examples = 2**24 + 2
        table = LabelTable(1, 2, num_examples)
        labels = np.zeros(num_examples, np.int64)
        labels[2**24 + 1] = 1
        table.assign(0, labels)
        logits = np.array([[[0.0, 10.0]]], np.float32)
        assert float(SelfLabelLoss(table)(np.array([2**24 + 1]), logits)) < 0.01
        assert float(SelfLabelLoss(table)(np.array([2**24]), logits)) > 9

    def test_beside_a_rotation_head_it_is_the_same(self, rng):
        """Of four turned views the first counts: the loss is that of the first views alone, beyond float32's integers, too."""
        num_examples = 2**24 + 2
        table = LabelTable(1, 2, num_examples)
        inputs = keras.Input((3,))
        model = with_rotation_head(keras.Model(inputs, MultiHead(1, 2)(inputs)))
        model.compile(
            "sgd",
            loss={"heads": SelfLabelLoss(table), "rotation": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        )
        index, views = np.array([2**24 + 1, 5]), rng.normal(size=(8, 3)).astype(np.float32)
        turns = np.tile(np.arange(4), 2)
        outputs = {name: values.numpy() for name, values in model(views).items()}
        weights = {"heads": 4.0 * (turns == 0), "rotation": np.ones(8)}
        loss = model.evaluate(views, {"heads": np.repeat(index, 4), "rotation": turns}, sample_weight=weights, verbose=0)
        heads = float(SelfLabelLoss(table)(index, outputs["heads"][::4]))
        logits = outputs["rotation"]
        rotation = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), turns])
        assert (loss[0] if isinstance(loss, list) else loss) == pytest.approx(heads + rotation, rel=1e-5)

    @pytest.mark.parametrize("xla", [False, True])
    @pytest.mark.parametrize("stray", [N, -1, 2**40])
    def test_an_index_outside_makes_it_nan_and_is_remembered(self, xla, stray):
        table = LabelTable(T, K, N)
        loss = tf.function(SelfLabelLoss(table), jit_compile=xla)
        logits = tf.zeros([3, T, K])
        assert float(loss(tf.constant([0, N - 1, 5]), logits)) == pytest.approx(np.log(K), rel=1e-5)
        assert table.index_outside is None
        assert np.isnan(float(loss(tf.constant([0, stray, 5], tf.int64), logits)))
        assert table.index_outside == stray

    def test_refuses_logits_of_another_shape(self):
        with pytest.raises(ValueError, match=r"\[B, 2, 4\]"):
            SelfLabelLoss(LabelTable(T, K, N))(np.zeros(3), np.zeros((3, K, T), np.float32))


class TestRelabelSteps:
    def test_the_reference_times(self):
        """Eight over ten epochs, of which seven fall within training, as in the PyTorch run of the method."""
        steps = relabel_steps(8, epochs=10, steps_per_epoch=234)
        assert steps == [int(np.ceil(11.01 * (j / 7) ** 2 * 234)) for j in range(7)]
        assert steps[0] == 0
        assert steps[-1] < 2340

    def test_five_fall_into_the_first_of_400_epochs(self):
        assert sum(step < 5000 for step in relabel_steps(100, epochs=400, steps_per_epoch=5000)) == 5

    def test_linear_and_coinciding_times(self):
        gaps = np.diff(relabel_steps(20, epochs=40, steps_per_epoch=100, spacing="linear"))
        assert gaps.max() - gaps.min() <= 1
        steps = relabel_steps(500, epochs=2, steps_per_epoch=5)
        assert steps == sorted(set(steps)) == list(range(10))
        assert relabel_steps(0, epochs=2, steps_per_epoch=5) == []
        assert relabel_steps(1, epochs=2, steps_per_epoch=5) == [0]

    def test_refuses(self):
        with pytest.raises(ValueError, match="cubic"):
            relabel_steps(3, epochs=1, steps_per_epoch=1, spacing="cubic")
        with pytest.raises(ValueError, match="epochs=0"):
            relabel_steps(3, epochs=0, steps_per_epoch=1)


class TestLabelPass:
    def test_log_probs_are_the_models(self, values):
        model = make_model()
        expected = tf.nn.log_softmax(model(values)).numpy()
        shuffled = batches(values).unbatch().shuffle(N, seed=3).batch(11)
        heads = list(head_log_probs(model, shuffled, num_examples=N))
        assert [head for head, _ in heads] == [0, 1]
        for head, log_probs in heads:
            np.testing.assert_allclose(log_probs, expected[:, head], atol=1e-5)

    def test_the_objective_falls_when_labels_are_exactly_balanced(self, values):
        """The old labels were feasible, so the optimum of the exact transport cannot be worse."""

        def exact(logits, initial_potentials):
            columns = np.repeat(np.arange(K), N // K)
            _, places = linear_sum_assignment(-logits.log_probs()[:, columns])
            return Assignment(columns[places], np.zeros(K))

        table = LabelTable(T, K, N)
        before = table.labels
        outcome = relabel(*features_and_heads(make_model(), values), table, assign=exact)
        for head in outcome:
            assert head.metrics["objective_after"] < head.metrics["objective_before"]
            assert head.metrics["information_share"] == pytest.approx(1.0)
            assert head.metrics["smallest_cluster"] == head.metrics["largest_cluster"] == N // K
        np.testing.assert_array_equal(table.labels, before)

    def test_a_collapse_has_no_information(self, values):
        def same(logits, initial_potentials):
            return Assignment(np.zeros(N, int), np.zeros(K))

        head = relabel(*features_and_heads(make_model(), values), LabelTable(T, K, N), assign=same)[0]
        assert head.metrics["information"] == 0
        assert head.metrics["nmi_with_previous"] == pytest.approx(0)
        assert head.metrics["changed"] == pytest.approx(1 - 1 / K)

    def test_objectives_are_those_of_all_heads_logits(self, values):
        features, heads = features_and_heads(make_model(), values)
        table = LabelTable(T, K, N)
        log_probs = tf.nn.log_softmax(heads(features)).numpy().astype(np.float64)
        for outcome in relabel(features, heads, table, assign=assign_labels):
            for labels, name in ((table.labels[outcome.head], "before"), (outcome.assignment.labels, "after")):
                expected = -log_probs[np.arange(N), outcome.head, labels].mean()
                assert outcome.metrics[f"objective_{name}"] == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("labels", [np.zeros(N - 1, int), np.full(N, K), np.full(N, -1), np.zeros(N)])
    def test_labels_that_cannot_be_are_refused(self, values, labels):
        def assign(logits, initial_potentials):
            return Assignment(labels, np.zeros(K))

        with pytest.raises(ValueError, match="`assign` must return 96 integer labels from 0 to 3"):
            relabel(*features_and_heads(make_model(), values), LabelTable(T, K, N), assign=assign)

    def test_something_else_than_an_assignment_is_refused(self, values):
        with pytest.raises(TypeError, match=r"sela_tf.Assignment.*exact_balance=False.*SinkhornResult"):
            relabel(*features_and_heads(make_model(), values), LabelTable(T, K, N), assign=sinkhorn)


class TestSelfLabelling:
    def fit(self, model, table, callback, values, **options):
        model.compile(keras.optimizers.SGD(0.05), loss=SelfLabelLoss(table), **options.pop("compile", {}))
        return model.fit(batches(values), shuffle=False, verbose=0, callbacks=[callback], **options)

    def test_relabels_before_its_steps_in_fit(self, values, capsys):
        seen = []
        table = LabelTable(T, K, N)
        callback = SelfLabelling(
            table, batches(values), relabel_steps=[0, 7, 12], log=lambda step, heads: seen.append((step, len(heads))), verbose=1
        )
        history = self.fit(make_model(), table, callback, values, epochs=3)
        assert seen == [(0, T), (7, T), (12, T)]
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3 * T
        assert lines[0].startswith("relabel step 0 head 0: ")
        assert np.isfinite(history.history["loss"]).all()
        for head in table.labels:
            assert np.abs(np.bincount(head, minlength=K) - N / K).max() <= 6  # argmax is nearly balanced

    @pytest.mark.parametrize("xla", [False, True])
    def test_the_very_next_batch_learns_from_the_new_labels(self, values, xla):
        """One network step from labels that only the relabelling gives: the loss of batch 3 is that of the new labels."""
        model = make_model(normalise=False)
        table = LabelTable(T, K, N)
        new = np.full(N, 3)
        losses = []

        def constant(logits, initial_potentials):
            return Assignment(new, np.zeros(K))

        class Watch(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                index = np.arange(batch * 16, batch * 16 + 16)
                losses.append(float(SelfLabelLoss(table)(index, self.model(values[index]))))

        model.compile(keras.optimizers.SGD(0.1), loss=SelfLabelLoss(table), jit_compile=xla)
        callback = SelfLabelling(table, batches(values), relabel_steps=[3], assign=constant)
        taken = []
        step_losses = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: taken.append(logs["loss"] * (batch + 1))
        )
        model.fit(batches(values), shuffle=False, verbose=0, callbacks=[callback, Watch(), step_losses])
        np.testing.assert_allclose(np.diff([0.0, *taken]), losses, rtol=1e-4)
        np.testing.assert_array_equal(table.labels, np.full((T, N), 3))

    def test_a_second_fit_goes_on_where_the_first_ended(self, values):
        steps = []
        table = LabelTable(T, K, N)
        callback = SelfLabelling(table, batches(values), relabel_steps=[0, 4, 8], log=lambda step, heads: steps.append(step))
        model = make_model()
        self.fit(model, table, callback, values, epochs=1)
        assert steps == [0, 4]
        model.fit(batches(values), shuffle=False, verbose=0, callbacks=[callback], epochs=1)
        assert steps == [0, 4, 8]

    def test_heads_in_turn(self, values):
        """One head a relabelling; those whose turn did not come yet keep the labels that they began with."""
        seen = []
        table = LabelTable(T, K, N)
        first = table.labels

        def log(step, heads):
            seen.append((step, [head.head for head in heads]))
            if step == 0:
                assert (table.labels[1:] == first[1:]).all()
                assert (table.labels[0] != first[0]).any()

        callback = SelfLabelling(table, batches(values), relabel_steps=[0, 3, 5, 9], heads_in_turn=True, log=log)
        self.fit(make_model(), table, callback, values, epochs=2)
        assert seen == [(step, [turn % T]) for turn, step in enumerate([0, 3, 5, 9])]
        assert table.num_relabellings.sum() == 4

    def test_steps_per_execution_skips_none(self, values):
        steps = []
        table = LabelTable(T, K, N)
        callback = SelfLabelling(table, batches(values), relabel_steps=[0, 1, 4], log=lambda step, heads: steps.append(step))
        self.fit(make_model(), table, callback, values, epochs=1, compile={"steps_per_execution": 3})
        assert steps == [0, 3]

    def test_views_may_differ_from_one_relabelling_to_the_next(self, values):
        asked = []

        def view(step):
            asked.append(step)
            return batches(values + step)

        table = LabelTable(T, K, N)
        self.fit(make_model(), table, SelfLabelling(table, view, relabel_steps=[0, 2]), values, epochs=1)
        assert asked == [0, 2]

    def test_features_may_come_from_elsewhere(self, values):
        """In place of a pass, or of several: what the heads see is given, and no data set."""
        model, given = make_model(normalise=False), []

        def mean_of_two(step, collect):
            return (collect(batches(values)) + collect(batches(values + 1))) / 2

        def assign(logits, **options):
            given.append(logits.features)
            return assign_labels(logits, **options)

        callback = SelfLabelling(LabelTable(T, K, N), None, relabel_steps=[], features=mean_of_two, assign=assign)
        callback.set_model(model)
        callback.relabel(1)
        expected = np.mean([features_and_heads(model, seen)[0] for seen in (values, values + 1)], axis=0)
        np.testing.assert_allclose(given[1], expected, rtol=1e-5)
        callback.features = lambda step, collect: expected[1:]
        with pytest.raises(ValueError, match=r"`features` must return \(96, 8\) numbers. Received: shape \(95, 8\)"):
            callback.relabel(2)
        with pytest.raises(ValueError, match="`inference_dataset` must be given"):
            SelfLabelling(LabelTable(T, K, N), None, relabel_steps=[])
        with pytest.raises(ValueError, match=r"must be a tf.data.Dataset.*Received: tuple"):
            SelfLabelling(LabelTable(T, K, N), (values, np.arange(N)), relabel_steps=[])
        for argument in ({"lam": -1.0}, {"label_memory": 0}, {"label_memory": "4"}, {"lam": float("inf")}):
            with pytest.raises(ValueError, match="must be a positive number"):
                SelfLabelling(LabelTable(T, K, N), batches(values), relabel_steps=[], **argument)

    def test_labels_of_a_failed_solve_are_not_used(self, values, capsys):
        def fails(logits, initial_potentials):
            return Assignment(np.zeros(N, int), np.zeros(K), converged=False)

        table = LabelTable(T, K, N)
        before = table.labels
        callback = SelfLabelling(table, batches(values), relabel_steps=[0], assign=fails, verbose=1)
        self.fit(make_model(), table, callback, values)
        np.testing.assert_array_equal(table.labels, before)
        assert "NOT CONVERGED" in capsys.readouterr().out

    def test_nan_in_the_logits_leaves_all_labels(self, values):
        model = make_model()
        table = LabelTable(T, K, N)
        before = table.labels
        bias = np.zeros((T, K))
        bias[1, 2] = np.nan
        model.layers[-1].bias.assign(bias)
        with pytest.raises(ValueError, match=r"`kernel` and `bias` must be finite.*diverged. Lower the learning rate"):
            self.fit(model, table, SelfLabelling(table, batches(values), relabel_steps=[0]), values)
        np.testing.assert_array_equal(table.labels, before)

    @pytest.mark.parametrize("xla", [False, True])
    def test_an_index_outside_the_table_is_named(self, values, xla):
        table = LabelTable(T, K, N)
        model = make_model()
        model.compile("sgd", loss=SelfLabelLoss(table), jit_compile=xla)
        strays = tf.data.Dataset.from_tensor_slices((values, np.arange(N) + 40)).batch(16)
        with pytest.raises(ValueError, match=f"index {N}, outside the label table of {N} images"):
            model.fit(strays, shuffle=False, verbose=0, callbacks=[SelfLabelling(table, batches(values), relabel_steps=[])])

    def test_divergence_is_named(self, values):
        table = LabelTable(T, K, N)
        model = make_model(normalise=False)
        model.compile(keras.optimizers.SGD(1e30), loss=SelfLabelLoss(table))
        with pytest.raises(ValueError, match="diverged. Lower the learning rate"):
            model.fit(
                batches(values),
                shuffle=False,
                verbose=0,
                epochs=5,
                callbacks=[SelfLabelling(table, batches(values), relabel_steps=[])],
            )

    def test_refuses_models_that_it_cannot_cut(self, values):
        table = LabelTable(T, K, N)
        inputs = keras.Input((6,))
        plain = keras.Model(inputs, keras.layers.Reshape((T, K))(keras.layers.Dense(T * K)(inputs)))
        callback = SelfLabelling(table, batches(values), relabel_steps=[0])
        with pytest.raises(ValueError, match="exactly one sela_tf.MultiHead"):
            self.fit(plain, table, callback, values)

        class Subclassed(keras.Model):
            def __init__(self):
                super().__init__()
                self.heads = MultiHead(T, K)

            def call(self, inputs):
                return self.heads(inputs)

        with pytest.raises(ValueError, match="functional"):
            self.fit(Subclassed(), table, callback, values)
        other = LabelTable(T, K + 1, N)
        with pytest.raises(ValueError, match="2 heads of 4 clusters, the label table 2 of 5"):
            self.fit(make_model(), table, SelfLabelling(other, batches(values), relabel_steps=[0]), values)
        with pytest.raises(ValueError, match="another LabelTable"):
            self.fit(make_model(), table, SelfLabelling(LabelTable(T, K, N), batches(values), relabel_steps=[0]), values)
        # one loss among several
        both = with_rotation_head(make_model())
        both.compile("sgd", loss={"heads": SelfLabelLoss(table), "rotation": "mse"})
        callback = SelfLabelling(LabelTable(T, K, N), batches(values), relabel_steps=[0])
        callback.set_model(both)
        with pytest.raises(ValueError, match="another LabelTable"):
            callback.on_train_begin()

    def test_the_training_view_uses_batch_statistics_and_changes_nothing(self, values):
        table = LabelTable(T, K, N)
        model = make_model()
        callback = SelfLabelling(table, batches(values, 24), relabel_steps=[], batch_statistics=True)
        callback.set_model(model)
        model.compile("sgd", loss=SelfLabelLoss(table))
        callback.on_train_begin()
        before = [np.asarray(variable).copy() for variable in model.variables]
        callback.relabel(5)
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value)
        logits = np.concatenate([model(values[i : i + 24], training=True) for i in range(0, N, 24)])
        log_probs = tf.nn.log_softmax(logits[:, 0]).numpy()
        rows, places = linear_sum_assignment(-np.repeat(log_probs, N // K, axis=1))
        assert (table.labels[0][rows] == places // (N // K)).mean() > 0.97
