"""Measures without classes: known answers on small networks and sets, and the verdict on real and ruined images."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import ROOT, run_doors
from PIL import Image
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_digits

from sela_tf.data.augment import Augmentation
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.pixel_rules import DEFAULT_RULES
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.stores import Arrays
from sela_tf.evaluation.arrangement import Arrangement, measure_arrangement
from sela_tf.evaluation.judging import Judging
from sela_tf.evaluation.outputs import NetworkOutputs
from sela_tf.evaluation.protocol import evaluation_images
from sela_tf.evaluation.raw_pixels import RawPixels
from sela_tf.evaluation.stability import ViewPairs, heads_agreement, measure_stability, view_pairs
from sela_tf.evaluation.without_classes import effective_clusters, verdict
from sela_tf.models.build import build_model
from sela_tf.reporting.tables import results_table
from sela_tf.reporting.verdict import many_clusters_note, verdict_line

VIEWS = Augmentation(crop_scale=0.5, flip_probability=0, saturation=0, hue=0)
SAME = VIEWS._replace(crop_scale=1, brightness=0, contrast=0)


def image_set(pixels: np.ndarray, classes: np.ndarray | None = None) -> ImageSet:
    return ImageSet(name="images", channels=1, store=Arrays(pixels[..., np.newaxis]), classes=classes, image_size=pixels.shape[1:])


def digits(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return np.rint(bunch.images[:count] * (255 / 16)).astype(np.uint8), bunch.target[:count]


def ruined(kind: str, pixels: np.ndarray) -> np.ndarray:
    """Images without anything to learn, of the same shape."""
    rng, flat = np.random.default_rng(0), pixels.reshape(len(pixels), -1)
    return {
        "noise": lambda: rng.integers(0, 256, pixels.shape),
        "shuffled": lambda: rng.permuted(flat, axis=1).reshape(pixels.shape),
        "one order": lambda: flat[:, rng.permutation(flat.shape[1])].reshape(pixels.shape),
        "one image": lambda: np.repeat(pixels[:1], len(pixels), axis=0),
        "constant": lambda: np.ones_like(pixels) * rng.integers(0, 256, (len(pixels), 1, 1)),
    }[kind]().astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(5)
    return build_model("resnet8", image_shape=(8, 8, 1), num_heads=2, num_clusters=4, width=4, mean=[78.0], variance=[9e3])


class _Fixed:
    """Passes whose outputs are given, one after another."""

    def __init__(self, *outputs: NetworkOutputs):
        self._outputs = iter(outputs)

    def outputs(self, batches: tf.data.Dataset, num_images: int) -> NetworkOutputs:
        return next(self._outputs)


def given(embedding: np.ndarray, clusters: np.ndarray) -> NetworkOutputs:
    return NetworkOutputs(embedding.astype(np.float32), clusters, np.ones(clusters.shape, np.float32), clusters)


@pytest.fixture(scope="module")
def views() -> ViewPairs:
    return view_pairs(image_set(digits(120)[0]), size=(8, 8), augmentation=VIEWS, seed=3)


class TestStability:
    def test_views_are_keyed_and_differ(self, views):
        again = view_pairs(image_set(digits(120)[0]), size=(8, 8), augmentation=VIEWS, seed=3)

        def pixels(batches):
            return np.concatenate([view for view, _ in batches])

        np.testing.assert_array_equal(pixels(views.first), pixels(again.first))
        orders = [np.concatenate([rows for _, rows in batches]) for batches in views[:2]]
        first, second = (pixels(batches)[np.argsort(order)] for batches, order in zip(views[:2], orders, strict=True))
        assert np.abs(first - second).mean() > 5
        labelled = inference_batches(image_set(digits(120)[0]), size=(8, 8), batch_size=500, seed=3, augmentation=VIEWS)
        assert not np.array_equal(pixels(labelled), pixels(views.first))

    def test_the_same_view_twice_is_perfectly_stable(self):
        images = image_set(digits(120)[0])
        pairs = view_pairs(images, size=(8, 8), augmentation=SAME, seed=0)
        raw = RawPixels(inference_batches(images, size=(8, 8), batch_size=500), 120, num_clusters=6)
        found = measure_stability(raw, pairs, raw.training.embedding, seed=0)
        assert found.neighbours_shared == 1
        assert found.neighbour_stability.value == 1
        assert found.view_agreement.value == pytest.approx(1)

    def test_a_collapse_is_not_stable(self, views, rng):
        """Neither one cluster for all, nor one embedding for all counts as agreement."""
        alike = given(np.ones((120, 6)), np.zeros((2, 120), int))
        found = measure_stability(_Fixed(alike, alike), views, rng.normal(size=(50, 6)).astype(np.float32), seed=0)
        assert found.neighbours_shared == found.neighbours_by_chance == 1
        assert found.neighbour_stability.value == found.view_agreement.value == 0

    def test_independent_views_have_what_chance_gives(self, views, rng):
        first, second = (given(rng.normal(size=(120, 6)), rng.integers(0, 5, (2, 120))) for _ in range(2))
        found = measure_stability(_Fixed(first, second), views, rng.normal(size=(50, 6)).astype(np.float32), seed=0)
        assert found.neighbours_by_chance == pytest.approx(10 / 50, abs=0.03)
        assert abs(found.neighbour_stability.value) < 0.05
        assert abs(found.view_agreement.value) < 0.05

    def test_shared_neighbours_are_numpys(self, views, rng):
        bank, first, second = (rng.normal(size=(count, 6)).astype(np.float32) for count in (50, 120, 120))
        second = first + 0.3 * second
        outputs = [given(each, np.zeros((1, 120), int)) for each in (first, second)]
        unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
        near = [np.argsort(-(each @ unit.T), axis=1)[:, :10] for each in (first, second)]
        expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)])
        assert measure_stability(_Fixed(*outputs), views, bank, seed=0).neighbours_shared == pytest.approx(expected)

    def test_heads(self, rng):
        clusters = rng.integers(0, 6, 200)
        assert heads_agreement(clusters[np.newaxis], seed=0) is None
        assert heads_agreement(np.stack([clusters, 5 - clusters]), seed=0).value == pytest.approx(1)
        assert effective_clusters(np.arange(60) % 6) == pytest.approx(6)
        assert effective_clusters(np.zeros(60, int)) == 1


def test_raw_pixels_are_k_means_on_small_views():
    pixels = np.kron(digits(200)[0], np.ones((3, 3), np.uint8))
    batches = inference_batches(image_set(pixels), size=(24, 24), batch_size=500)
    found = RawPixels(batches, 200, num_clusters=12, seed=4)
    small = tf.image.resize(pixels[..., np.newaxis].astype(np.float32), (16, 16), antialias=True).numpy().reshape(200, -1) / 255
    np.testing.assert_allclose(found.training.embedding, small, atol=1e-5)
    peer = MiniBatchKMeans(12, n_init=3, batch_size=1024, random_state=4).fit(small)
    assert (found.training.clusters[0] == peer.predict(small)).mean() > 0.98
    np.testing.assert_array_equal(found.outputs(batches, 200).clusters, found.training.clusters)
    few = RawPixels(batches, 200, rows=np.arange(5), num_clusters=12)
    assert few.num_clusters == 5


@pytest.mark.parametrize("kind", ["noise", "shuffled", "one order", "one image", "constant"])
def test_arrangement_tells_pictures_from_noise(kind):
    pixels, _ = digits()
    real, found = (measure_arrangement(image_set(each), size=(8, 8)) for each in (pixels, ruined(kind, pixels)))
    assert real.images_differ
    assert real.neighbour_correlation > 0.3
    assert found.neighbour_correlation < 0.05
    assert found.images_differ == (kind not in ("one image", "constant"))


@pytest.mark.parametrize("bound", [0, 10])
def test_noise_in_large_files_is_no_picture(tmp_path, rng, bound):
    """Pixels that decoding reduces, and the clean view enlarges again, would be alike."""
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    images = load_source(f"folder:{tmp_path}", SourceOptions(rules=DEFAULT_RULES._replace(shorter_side=bound))).train
    assert images.image_size == (40, 40)
    assert measure_arrangement(images, size=(8, 8)).neighbour_correlation < 0.1


def test_vectors_have_no_arrangement(rng):
    vectors = ImageSet(name="x", channels=6, store=Arrays(rng.normal(size=(20, 6)).astype(np.float32)), image_size=())
    assert measure_arrangement(vectors, size=()) is None


def _compared(**outcomes: str) -> dict:
    """The comparisons of the trained network, all better but for those that are named "other__measure"."""
    names = {
        f"{other}__{measure}" for other in ("untrained", "raw_pixels") for measure in ("view_agreement", "neighbour_stability")
    }
    found: dict = {"untrained": {}, "raw_pixels": {}}
    for name in names:
        other, measure = name.split("__")
        found[other][measure] = {"outcome": outcomes.get(name, "better")}
    return found


@pytest.mark.parametrize(
    ("compared", "arrangement", "effective", "outcome", "reason"),
    [
        (_compared(), Arrangement(60.0, 0.8), 20.0, "worked", ""),
        (_compared(), None, 20.0, "worked", ""),
        (_compared(), Arrangement(60.0, 0.01), 20.0, "not clear", "noise or shuffled pixels"),
        (_compared(), Arrangement(0.2, 0.0), 20.0, "did not work", "all the same"),
        (_compared(), Arrangement(60.0, 0.8), 1.5, "did not work", "collapsed"),
        (
            _compared(raw_pixels__view_agreement="no difference seen"),
            Arrangement(60.0, 0.8),
            20.0,
            "not clear",
            "better than raw pixels at clusters of two views; longer",
        ),
        (
            _compared(untrained__view_agreement="worse"),
            Arrangement(60.0, 0.8),
            20.0,
            "not clear",
            "than the untrained network at clusters of two views; longer",
        ),
        (
            _compared(untrained__view_agreement="worse", untrained__neighbour_stability="no difference seen"),
            Arrangement(60.0, 0.8),
            20.0,
            "did not work",
            "no better than before",
        ),
    ],
)
def test_the_rule(compared, arrangement, effective, outcome, reason):
    found = verdict({"effective_clusters": [effective]}, compared, arrangement, num_clusters=32, num_images=400)
    assert found[0] == outcome
    assert reason in found[1]


@pytest.mark.parametrize(
    ("effective", "outcome"), [(1.9995, "worked"), (1.5, "worked"), (1.05, "did not work"), (1.0, "did not work")]
)
def test_two_clusters_need_not_be_equal(effective, outcome):
    assert verdict({"effective_clusters": [effective]}, _compared(), None, num_clusters=2, num_images=400)[0] == outcome


@pytest.fixture(scope="module")
def figures(network: keras.Model) -> dict:
    pixels, classes = digits(400)
    train, held_out = image_set(pixels[:250], classes[:250]), image_set(pixels[250:], classes[250:])
    judging = Judging(evaluation_images(train, held_out, (8, 8)), augmentation=VIEWS, num_clusters=4, seed=0)
    one = judging.network(network)
    labels = np.stack([classes[:250] % 4] * 2)
    return judging.figures(trained=one, untrained=one, raw_pixels=judging.raw_pixels(), labels=labels)


class TestJudging:
    def test_a_network_is_no_better_than_itself(self, figures):
        assert {each["outcome"] for each in figures["compared"]["untrained"].values()} == {"no difference seen"}
        assert figures["without_classes"]["outcome"] == "did not work"
        assert figures["compared"]["raw_pixels"]["knn"]["outcome"] == "worse"

    def test_every_figure_has_its_interval(self, figures):
        for column in ("trained", "untrained", "raw_pixels", "chance", "training_labels"):
            for name, value in figures[column].items():
                if name in ("clusters_used", "protocol"):
                    continue
                intervals = np.reshape(figures["intervals"][column][name], (-1, 2))
                for each, (low, high) in zip(np.ravel(value), intervals, strict=True):
                    assert low <= each <= high, (column, name)

    def test_random_clusters_have_the_sizes_of_the_networks(self, figures):
        assert figures["random_clusters"]["clusters_used"] == figures["trained"]["clusters_used"]
        assert max(figures["random_clusters"]["ami"]) < 0.05

    def test_table_and_line(self, figures):
        results = {**figures, "config": {"num_clusters": 4}, "data": {"num_classes": 10}}
        text = results_table(results)
        (knn,) = [line for line in text.splitlines() if line.startswith("kNN accuracy")]
        assert knn.count("±") == 4
        assert " =" in knn
        assert " -" in knn
        assert "Hungarian accuracy, head 0" in text
        line = verdict_line(results)
        assert "no difference seen to the untrained network's" in line
        assert "WORSE THAN that of raw pixels" in line
        many = {**results, "config": {"num_clusters": 128}}
        assert "K = 128 clusters for 10 classes" in many_clusters_note(many)
        assert "Hungarian accuracy, head 0" not in results_table(many)

    def test_runs_of_before_are_shown_as_before(self):
        old = json.loads((ROOT / "tests" / "data" / "run_of_cf4b11e" / "results.json").read_text())
        assert "±" not in results_table(old)
        assert f"kNN {old['trained']['knn']:.3f}, the untrained network's" in verdict_line(old)


@pytest.mark.slow
def test_digits_without_classes_worked_and_ruined_ones_did_not(tmp_path):
    pixels, _ = digits(1797)
    sets = {"real": pixels, **{kind: ruined(kind, pixels) for kind in ("shuffled", "one image")}}
    commands = []
    for name, images in sets.items():
        np.savez(tmp_path / f"{name.split()[0]}.npz", images=images)
        place = tmp_path / name.split()[0]
        options = ["--flagfile=configs/digits.cfg", f"--dataset=npz:{place}.npz", "--epochs=6", "--noreport"]
        commands.append([*options, f"--workdir={place}"])
    commands.append([*commands[0][:-1], "--seed=1", f"--workdir={tmp_path / 'other'}"])
    doors = run_doors(commands)
    for door in doors:
        assert door.returncode == 0, door.stderr
    real, shuffled, one, _ = (" ".join(door.stdout.split()) for door in doors)
    assert "It worked: two views of an image fall into the same cluster" in real
    assert "It is not clear: the images look like noise or shuffled pixels" in shuffled
    assert "It did not work: the images are all the same" in one
    for name in ("shuffled", "one"):
        assert json.loads((tmp_path / name / "results.json").read_text())["without_classes"]["outcome"] != "worked"
    same, unlike = run_doors(
        [[f"--workdir={tmp_path / 'real'}", f"--other_run={tmp_path / other}"] for other in ("other", "one")], "sela_tf.probe"
    )
    assert same.returncode == 0, same.stderr
    found = json.loads((tmp_path / "real" / "probes.json").read_text())["other_run"]
    assert found["intervals"]["trained"][0] > found["intervals"]["untrained"][1]
    assert unlike.returncode == 2
    assert "which are not the" in unlike.stderr
