"""Schedule and label pass."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linear_sum_assignment
from user_model import K, N, T, batches, features_and_heads, make_model

from sela_tf.self_labelling.label_pass import compute_labels, head_log_probs
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.self_labelling.schedule import relabel_steps
from sela_tf.transport.assignment import Assignment, assign_labels
from sela_tf.transport.sinkhorn import sinkhorn


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
        outcome = compute_labels(*features_and_heads(make_model(), values), table, assign=exact)
        for head in outcome:
            assert head.metrics["objective_after"] < head.metrics["objective_before"]
            assert head.metrics["information_share"] == pytest.approx(1.0)
            assert head.metrics["smallest_cluster"] == head.metrics["largest_cluster"] == N // K
        np.testing.assert_array_equal(table.labels, before)

    def test_a_collapse_has_no_information(self, values):
        def same(logits, initial_potentials):
            return Assignment(np.zeros(N, int), np.zeros(K))

        head = compute_labels(*features_and_heads(make_model(), values), LabelTable(T, K, N), assign=same)[0]
        assert head.metrics["information"] == 0
        assert head.metrics["nmi_with_previous"] == pytest.approx(0)
        assert head.metrics["changed"] == pytest.approx(1 - 1 / K)

    def test_objectives_are_those_of_all_heads_logits(self, values):
        features, heads = features_and_heads(make_model(), values)
        table = LabelTable(T, K, N)
        log_probs = tf.nn.log_softmax(heads(features)).numpy().astype(np.float64)
        for outcome in compute_labels(features, heads, table, assign=assign_labels):
            for labels, name in ((table.labels[outcome.head], "before"), (outcome.assignment.labels, "after")):
                expected = -log_probs[np.arange(N), outcome.head, labels].mean()
                assert outcome.metrics[f"objective_{name}"] == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("labels", [np.zeros(N - 1, int), np.full(N, K), np.full(N, -1), np.zeros(N)])
    def test_labels_that_cannot_be_are_refused(self, values, labels):
        def assign(logits, initial_potentials):
            return Assignment(labels, np.zeros(K))

        with pytest.raises(ValueError, match="`assign` must return 96 integer labels from 0 to 3"):
            compute_labels(*features_and_heads(make_model(), values), LabelTable(T, K, N), assign=assign)

    def test_something_else_than_an_assignment_is_refused(self, values):
        with pytest.raises(TypeError, match=r"sela_tf.Assignment.*exact_balance=False.*SinkhornResult"):
            compute_labels(*features_and_heads(make_model(), values), LabelTable(T, K, N), assign=sinkhorn)
