"""The label table: what it holds, takes, refuses and gives back."""

from __future__ import annotations

import types

import numpy as np
import pytest
import tensorflow as tf
from user_model import K, N, T, table_of

import sela_tf
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.settings.training import SelaConfig
from sela_tf.training.initial_state import label_table


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
