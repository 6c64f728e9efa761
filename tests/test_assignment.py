"""The transport and the rounding together, as training calls them, and the files of known labels."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sela_tf.data.image_set import ImageSet, SourceError
from sela_tf.data.label_files import read_known_labels
from sela_tf.transport.assignment import assign_labels


def _objective(log_probs: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.take_along_axis(log_probs, labels[:, np.newaxis], axis=1).mean(dtype=np.float64))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), num_clusters=st.sampled_from([2, 7, 12]), change=st.floats(0.01, 3))
def test_the_objective_falls_at_every_relabelling(seed, num_clusters, change):
    """Whatever the network has become since: the labels of before were feasible, and the new ones are the best."""
    rng = np.random.default_rng(seed)
    log_probs = oracle.log_probs(rng, 500, num_clusters)
    labels = rng.permutation(np.arange(500) % num_clusters)
    potentials = None
    for _ in range(4):
        new = assign_labels(log_probs, initial_potentials=potentials)
        assert set(np.bincount(new.labels, minlength=num_clusters)) <= {500 // num_clusters, -(-500 // num_clusters)}
        assert _objective(log_probs, new.labels) <= _objective(log_probs, labels) + 1e-5
        labels, potentials = new.labels, new.potentials
        log_probs = log_probs + change * rng.normal(size=log_probs.shape).astype(np.float32)


def test_marginals_become_whole_sizes(rng):
    log_probs = oracle.log_probs(rng, 1003, 6)
    shares = np.array([0.3, 0.3, 0.2, 0.1, 0.05, 0.05])
    assigned = assign_labels(log_probs, marginals=shares)
    sizes = np.bincount(assigned.labels, minlength=6)
    np.testing.assert_array_equal(sizes, assigned.sizes)
    assert np.abs(sizes - 1003 * shares).max() < 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), held=st.integers(1, 300), prior=st.sampled_from(["uniform", "zipf", "gaussian"]))
def test_known_labels_are_kept_and_count(seed, held, prior):
    rng = np.random.default_rng(seed)
    log_probs = oracle.log_probs(rng, 400, 5)
    known = np.full(400, -1)
    known[rng.permutation(400)[:held]] = np.arange(held) % 5
    try:
        assigned = assign_labels(log_probs, marginals=prior, known=known)
    except ValueError as error:
        if prior != "zipf" or "`known` has" not in str(error):
            raise
        return
    np.testing.assert_array_equal(assigned.labels[known >= 0], known[known >= 0])
    np.testing.assert_array_equal(np.bincount(assigned.labels, minlength=5), assigned.sizes)
    if prior == "uniform":
        assert set(assigned.sizes) == {80}


def test_labels_are_balanced_even_where_the_transport_failed(rng):
    assigned = assign_labels(oracle.log_probs(rng, 300, 6), lam=500.0, max_iterations=1)
    assert not assigned.converged
    assert assigned.exactly_balanced
    assert set(np.bincount(assigned.labels)) == {50}


def test_a_share_that_known_labels_fill_to_the_last_image_is_rounded_up(rng):
    """21 images, 10.5 of each of two clusters, and 11 known of the one that would get 10."""
    known = np.repeat([1, -1], [11, 10])
    assigned = assign_labels(oracle.log_probs(rng, 21, 2), marginals=np.array([1.0, 1.0]), known=known)
    np.testing.assert_array_equal(assigned.sizes, [10, 11])
    np.testing.assert_array_equal(assigned.labels, np.repeat([1, 0], [11, 10]))


def _images(names: tuple[str, ...] | None) -> ImageSet:
    return ImageSet(name="four", images=np.zeros((4, 2, 2, 1), np.uint8), channels=1, names=names)


class TestKnownLabels:
    def test_by_name_and_by_index(self, tmp_path):
        file = tmp_path / "known.csv"
        file.write_text("name,cluster\nb.png,1\n\nd/e.png, 0\n")
        assert read_known_labels(file, _images(("a.png", "b.png", "c.png", "d/e.png")), 2).tolist() == [-1, 1, -1, 0]
        file.write_text("\ufeffindex,cluster\n2,1\n2,1\n")
        assert read_known_labels(file, _images(None), 2).tolist() == [-1, -1, 1, -1]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "must be name,cluster or index,cluster"),
            ("a.png,1\n", "first line"),
            ("name,cluster\nz.png,1\n", "line 2.*'z.png'"),
            ("name,cluster\na.png,2\n", "line 2.*from 0 to 1. Received: '2'"),
            ("name,cluster\na.png,cat\n", "line 2.*'cat'"),
            ("name,cluster\na.png,1\na.png,0\n", "line 3.*cluster 1 before. Received: 0"),
            ("name,cluster\na.png\n", "line 2.*two columns"),
            ("index,cluster\n4,0\n", "line 2.*'4' of the 4 training images"),
            ("index,cluster\n-1,0\n", "'-1'"),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path, text, message):
        file = tmp_path / "known.csv"
        file.write_text(text)
        with pytest.raises(SourceError, match=message):
            read_known_labels(file, _images(("a.png", "b.png", "c.png", "d.png")), 2)

    def test_a_file_that_is_not_there_and_names_that_are_not(self, tmp_path):
        with pytest.raises(SourceError, match="nothing.csv"):
            read_known_labels(tmp_path / "nothing.csv", _images(None), 2)
        (tmp_path / "known.csv").write_text("name,cluster\na.png,1\n")
        with pytest.raises(SourceError, match="begin .* with index,cluster"):
            read_known_labels(tmp_path / "known.csv", _images(None), 2)
