"""The review of a set of images, of what to look at first: neighbours against brute force, planted faults, ranks and orders."""

from __future__ import annotations

import numpy as np
import pytest

from sela_tf.evaluation.duplicates import find_duplicates
from sela_tf.evaluation.knn import neighbours
from sela_tf.evaluation.picture_fit import picture_differences
from sela_tf.evaluation.review import Review, ranking, review
from sela_tf.evaluation.urgency import Urgency, sample_places

NUM_CLASSES, OF_CLASS = 4, 25


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """100 smooth colour pictures of four classes that differ, with embeddings that know the class."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(NUM_CLASSES), OF_CLASS)
    y, x = np.meshgrid(np.arange(24), np.arange(24), indexing="ij")
    pictures = []
    for each in classes:
        waves = [
            np.sin(2 * np.pi * (fy * y + fx * x) / 24 + phase)
            for fy, fx, phase in zip(rng.uniform(0.5, 3, 4), rng.uniform(0.5, 3, 4), rng.uniform(0, 6, 4), strict=True)
        ]
        shape = (np.hypot(y - 12, x - 12) < 4 + 2 * each) * 120
        pictures.append(np.stack([shape + 20 * (waves[c] + waves[3]) + 60 for c in range(3)], axis=-1))
    return {
        "thumbnails": np.clip(pictures, 0, 255).astype(np.uint8),
        "embedding": (3 * np.eye(8)[classes] + 0.3 * rng.normal(size=(len(classes), 8))).astype(np.float32),
        "classes": classes,
        "clusters": np.stack([classes, rng.integers(0, 9, len(classes))], axis=1),
        "margins": rng.random((len(classes), 2)).astype(np.float32),
        "disagreement": rng.random(len(classes)).astype(np.float32),
        "held_out": np.arange(len(classes)) % 5 == 0,
    }


def reviewed(arrays: dict[str, np.ndarray], **changes) -> Review:
    arrays = {**arrays, **changes}
    return review(neighbours(arrays["embedding"]), **arrays)


def checked(found: Review, count: int) -> Review:
    """Holds what is promised of every review."""
    for order in found.rankings.values():
        assert sorted(order.ranks) == list(range(1, count + 1))
        assert np.isfinite(order.scores).all()
        assert (np.diff(order.scores[np.argsort(order.ranks)]) <= 0).all()
    shown = [row for entry in found.first for row in (found.duplicates[entry.group].images if entry.group >= 0 else (entry.image,))]
    assert sorted(shown) == list(range(count))
    return found


class TestNeighbours:
    @pytest.mark.parametrize(("count", "k"), [(2, 10), (7, 3), (2500, 5)])
    def test_are_those_of_brute_force(self, rng, count, k):
        embedding = rng.normal(size=(count, 16)).astype(np.float32)
        found = neighbours(embedding, k=k)
        unit = embedding.astype(np.float64) / np.linalg.norm(embedding.astype(np.float64), axis=1, keepdims=True)
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, -2)
        np.testing.assert_allclose(found.similarity, -np.sort(-cosine, axis=1)[:, : min(k, count - 1)], atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(cosine, found.nearest, axis=1), found.similarity, atol=1e-5)

    @pytest.mark.parametrize("count", [1, 2, 5, 30])
    def test_an_image_is_not_its_own_where_all_are_the_same(self, count):
        nearest, similarity = neighbours(np.ones((count, 3), np.float32), k=4)
        assert nearest.shape == similarity.shape == (count, min(4, count - 1))
        assert (nearest != np.arange(count)[:, np.newaxis]).all()
        assert all(len(set(row)) == len(row) for row in nearest.tolist())
        np.testing.assert_allclose(similarity, 1.0, atol=1e-6)


class TestDuplicates:
    @pytest.mark.parametrize("way", ["same", "shifted", "brightened", "cropped"])
    def test_a_copy_is_found_and_nothing_else(self, drawn, way):
        pictures, held_out = drawn["thumbnails"].copy(), drawn["held_out"].copy()
        original = pictures[3]
        copies = {
            "same": original,
            "shifted": np.pad(original, ((1, 0), (1, 0), (0, 0)), mode="edge")[:-1, :-1],
            "brightened": np.round(0.8 * original + 30).astype(np.uint8),
            "cropped": original[np.linspace(1, 22, 24).round().astype(int)][:, np.linspace(1, 22, 24).round().astype(int)],
        }
        pictures[60], held_out[[3, 60]] = copies[way], [False, True]
        nearest = neighbours(pictures.reshape(100, -1).astype(np.float32)).nearest
        (group,) = find_duplicates(nearest, embedding=drawn["embedding"], thumbnails=pictures, held_out=held_out)
        assert group.images == (3, 60)
        assert group.spans
        assert group.kind == ("exact" if way == "same" else "near")
        assert (group.difference == 0) == (way == "same")

    def test_differences_are_those_of_least_squares(self, rng):
        """Gains and offsets explain all; noise explains nothing."""
        one = rng.integers(0, 256, (8, 8, 1))
        pictures = np.stack([one, one // 2 + 40, rng.integers(0, 256, (8, 8, 1)), np.full((8, 8, 1), 9)]).astype(np.uint8)
        found = picture_differences(np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]), pictures)
        assert found[0, 0] < 0.01
        assert found[0, 1] > 0.3
        assert (found[3] == 1).all()
        assert found[0, 2] == 1

    def test_images_of_one_colour(self):
        pictures = np.repeat(np.array([0, 0, 0, 90, 255], np.uint8), 64).reshape(5, 8, 8, 1)
        groups = find_duplicates(
            neighbours(np.eye(5, dtype=np.float32)).nearest, embedding=np.eye(5), thumbnails=pictures, held_out=np.zeros(5, bool)
        )
        assert [(group.images, group.kind, group.spans) for group in groups] == [((0, 1, 2), "exact", False)]

    def test_of_vectors(self, rng):
        vectors = rng.normal(size=(50, 8)).astype(np.float32)
        vectors[7], vectors[9] = vectors[30], vectors[31] + 1e-3
        groups = find_duplicates(neighbours(vectors).nearest, embedding=vectors, thumbnails=None, held_out=np.arange(50) < 10)
        assert [(group.images, group.kind) for group in groups] == [((7, 30), "exact"), ((9, 31), "near")]


class TestReview:
    def test_planted_faults_come_first(self, drawn):
        pictures, embedding, classes = (drawn[name].copy() for name in ("thumbnails", "embedding", "classes"))
        classes[40] = 3
        pictures[70], embedding[70] = np.random.default_rng(1).integers(0, 256, (24, 24, 3)), np.eye(8)[7]
        pictures[10], embedding[10] = pictures[11], embedding[11]
        found = checked(reviewed(drawn, thumbnails=pictures, embedding=embedding, classes=classes), 100)
        assert [(entry.image, entry.reason) for entry in found.first[:3]] == [
            (10, "duplicate"), (40, "other_class"), (70, "outlier"),
        ]  # fmt: skip
        assert found.rankings["other_class"].ranks[40] == found.rankings["outlier"].ranks[70] == 1

    def test_low_margins_and_heads_that_disagree_come_first(self, drawn):
        rankings = reviewed(drawn).rankings
        assert rankings["low_margin"].ranks.argmin() == drawn["margins"].mean(axis=1).argmin()
        assert rankings["disagree"].ranks.argmin() == drawn["disagreement"].argmax()

    def test_the_order_of_the_images_does_not_matter(self, drawn):
        order = np.random.default_rng(2).permutation(100)
        moved = reviewed({name: values[order] for name, values in drawn.items()})
        for reason, one in reviewed(drawn).rankings.items():
            np.testing.assert_allclose(one.scores[order], moved.rankings[reason].scores, atol=1e-4)

    def test_without_classes_with_one_head_and_of_vectors(self, drawn):
        changes = {"classes": None, "thumbnails": None, **{name: drawn[name][:, :1] for name in ("clusters", "margins")}}
        assert set(checked(reviewed(drawn, **changes), 100).rankings) == {"outlier", "low_margin"}

    @pytest.mark.parametrize(("count", "side", "channels"), [(10, 8, 1), (12, 64, 3)])
    def test_few_images_and_images_of_one_colour(self, drawn, count, side, channels):
        arrays = {name: values[:count] for name, values in drawn.items()}
        pictures = np.full((count, side, side, channels), 7, np.uint8)
        pictures[: count // 2] = np.random.default_rng(3).integers(0, 256, (count // 2, side, side, channels))
        found = checked(reviewed(arrays, thumbnails=pictures), count)
        assert tuple(range(count // 2, count)) in [group.images for group in found.duplicates]
        checked(reviewed(arrays, thumbnails=np.zeros_like(pictures), embedding=np.ones_like(arrays["embedding"])), count)

    def test_of_equal_scores_the_lower_row_comes_first(self):
        assert ranking(np.array([1.0, 2.0, 1.0, 2.0])).ranks.tolist() == [3, 1, 4, 2]


class TestUrgency:
    def test_is_evenly_spread_and_finds_what_is_wrong(self, drawn):
        classes, embedding, places = drawn["classes"].copy(), drawn["embedding"].copy(), np.arange(100)
        classes[40], embedding[70] = 3, np.eye(8)[7]
        urgency = Urgency(embedding, classes, places).look_here_first(embedding, classes, places)
        np.testing.assert_allclose(np.sort(urgency), np.linspace(0, 1, 100), atol=0.03)
        assert set(np.argsort(-urgency)[:2]) == {40, 70}
        without = Urgency(embedding, None, places).look_here_first(embedding, None, places)
        assert np.argmax(without) == 70

    def test_a_block_is_told_what_the_whole_is_told(self, drawn):
        embedding, classes, places = drawn["embedding"], drawn["classes"], np.arange(100)
        sample = np.arange(0, 100, 3)
        urgency = Urgency(embedding[sample], classes[sample], sample)
        whole = urgency.look_here_first(embedding, classes, places)
        parts = [urgency.look_here_first(embedding[p], classes[p], p) for p in np.split(places, [1, 60])]
        # Rounding may move an image past its equal in the sample, by one step of 34.
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=0.031)
        assert (whole >= 0).all()
        assert (whole <= 1).all()

    def test_of_one_image_and_of_a_class_that_the_sample_lacks(self, drawn):
        one = Urgency(drawn["embedding"][:1], np.zeros(1, int), np.arange(1))
        assert np.isfinite(one.look_here_first(drawn["embedding"][:1], np.zeros(1, int), np.arange(1))).all()
        few = Urgency(drawn["embedding"][:20], drawn["classes"][:20], np.arange(20))
        assert few.look_here_first(drawn["embedding"][60:61], np.array([3]), np.array([60]))[0] >= 0.5

    def test_the_sample_is_evenly_spaced(self):
        assert sample_places(5).tolist() == [0, 1, 2, 3, 4]
        places = sample_places(100_000)
        assert len(places) == 4096
        assert (places[0], places[-1]) == (0, 99_999)
        assert set(np.diff(places)) == {24, 25}
