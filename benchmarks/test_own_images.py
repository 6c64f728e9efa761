"""Tests of benchmarks/own_images: sets, other methods, figures, the table."""

from __future__ import annotations

import json
import pathlib
import sys

import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from fitting import K, N, T, blobs, make_model, pairs
from fixtures import ROOT, SMALL
from PIL import Image
from scipy.special import log_softmax

import sela_tf
from benchmarks.own_images import pictures
from benchmarks.own_images import table as table_of
from benchmarks.own_images.__main__ import main
from benchmarks.own_images.baselines import histograms, pixels
from benchmarks.own_images.fetching import MissingPackageError
from benchmarks.own_images.glyphs import CHARACTERS, font_glyphs
from benchmarks.own_images.jobs import read_rows, tried_flags
from benchmarks.own_images.judging import Features, judge
from benchmarks.own_images.measures import correlations
from benchmarks.own_images.packing import pack, unpack
from benchmarks.own_images.sets import SETS, set_settings
from benchmarks.own_images.simclr import nt_xent, pairs_of_views
from benchmarks.own_images.table import compare, goals, table
from benchmarks.own_images.variants import MultiCropExperiment, TeacherLabelling
from benchmarks.own_images.worker import config_of
from sela_tf.data.augment import Augmentation
from sela_tf.data.classes import ClassLabels
from sela_tf.data.image_set import SourceName
from sela_tf.data.sources.arrays import array_set
from sela_tf.evaluation.without_classes import JUDGED_BY
from sela_tf.training.devices import prepare_devices
from sela_tf.training.images import Data

PLAIN = Augmentation(1.0, 0.0, *[0.0] * 6)


def row(method: str, knn: np.ndarray, *, seed: int = 0, num_training: int = 2000) -> dict:
    """A row whose classes are clustered as well as they are told."""
    classes = np.arange(len(knn)) % 5
    clusters = np.where(knn, classes, 0)[np.newaxis]
    figures = {"knn": knn.mean(), "linear": knn.mean(), "ami": float(knn.mean())}
    answers = {"knn": pack(knn), "linear": pack(knn), "clusters": pack(clusters), "classes": pack(classes)}
    sizes = {"num_training": num_training, "num_held_out": len(knn)}
    return {"set": "a", "method": method, "name": "defaults", "seed": seed, "figures": figures, "answers": answers, **sizes}


def test_answers_survive_packing(rng):
    for values in (rng.random(13) < 0.5, rng.integers(0, 300, (2, 7))):
        np.testing.assert_array_equal(unpack(json.loads(json.dumps(pack(values)))), values)


def test_settings_are_told_apart_by_names():
    flags = tried_flags("num_clusters=64,lr_drops=0.5,0.8,rotation=true")
    config = config_of(["--dataset=digits", "--num_clusters=9", *flags])
    assert (config.num_clusters, config.lr_drops, config.rotation) == (64, (0.5, 0.8), True)
    assert tried_flags("") == []


def test_one_seed_is_compared_by_mcnemars_test(rng):
    own, other = rng.random(400) < 0.7, rng.random(400) < 0.6
    gains, losses = (own & ~other).sum(), (other & ~own).sum()
    found = compare([row("sela", own)], [row("raw", other)], "knn")
    assert found.difference == pytest.approx(own.mean() - other.mean())
    assert found.z == pytest.approx((gains - losses) / np.sqrt(gains + losses))
    # The same answers of several seeds say no more than those of one.
    assert compare([row("sela", own)] * 3, [row("raw", other)], "knn") == pytest.approx(found)


def test_the_error_of_ami_is_that_of_other_samples(rng, monkeypatch):
    monkeypatch.setattr(table_of, "_HALVES", 20)

    def rows() -> tuple[dict, dict]:
        return row("sela", rng.random(300) < 0.8), row("raw", rng.random(300) < 0.7)

    samples = [rows() for _ in range(20)]
    amis = [[judge_ami(each) for each in pair] for pair in samples]
    spread = np.std(np.subtract(*np.transpose(amis)), ddof=1)
    errors = [compare([own], [other], "ami").standard_error for own, other in samples[:3]]
    assert 0.4 * spread < np.mean(errors) < 2.5 * spread


def judge_ami(each: dict) -> float:
    from sklearn.metrics import adjusted_mutual_info_score

    return adjusted_mutual_info_score(unpack(each["answers"]["classes"]), unpack(each["answers"]["clusters"])[0])


def test_goals_are_missed_beyond_chance_only(rng, capsys, monkeypatch):
    monkeypatch.setattr(table_of, "_HALVES", 8)
    good, fair = rng.random(500) < 0.9, rng.random(500) < 0.6
    rows = [row("sela", fair), row("untrained", fair), row("raw", good), row("simclr", ~good)]
    assert goals(rows) == 6
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["MISSED:"] * 6 + ["reached:"] * 3
    # Raw pixels are no goal for sets that are smaller.
    assert goals([row("sela", fair, num_training=1999), row("raw", good, num_training=1999)]) == 0
    cells = [[cell.strip() for cell in line.split("|")[1:6]] for line in table(rows).splitlines()]
    assert ["a", "defaults", "raw", "1", f"{good.mean():.3f} ± {np.sqrt(good.mean() * (1 - good.mean()) / 500):.3f}"] in cells


def test_correlations_are_those_of_ranks():
    """A measure that follows the figure within each set, whatever the level of the set; and one that does the opposite."""
    rows = []
    for level, of_set in enumerate("abc"):
        for rank, method in enumerate(("raw", "untrained", "sela", "sela", "sela")):
            figures = dict.fromkeys(("knn", "linear", "ami"), 10 * level + rank)
            measures = {"view_agreement": np.exp(rank), "neighbour_stability": -rank - 10 * level}
            rows.append({"set": of_set, "method": method, "seed": 0, "figures": figures, "measures": measures})
    lines = {
        tuple(cell.strip() for cell in line.split("|")[1:3]): line.split("|")[3:6] for line in correlations(rows).splitlines()[2:]
    }
    for figure in ("knn", "linear", "ami"):
        assert [float(cell) for cell in lines["view_agreement", figure]][1:] == [1.0, 1.0]
        assert [float(cell) for cell in lines["neighbour_stability", figure]] == [-1.0, -1.0, -1.0]
    assert float(lines["view_agreement", "knn"][0]) < 0.5


def test_the_loss_of_simclr_is_that_of_finding_the_other_view(rng):
    projected = rng.normal(size=(6, 4)).astype(np.float32)
    unit = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    similarity = unit @ unit.T / 0.2
    np.fill_diagonal(similarity, -np.inf)
    expected = -np.mean([log_softmax(similarity[i])[(i + 3) % 6] for i in range(6)])
    assert nt_xent(tf.constant(projected), temperature=0.2).numpy() == pytest.approx(expected, rel=1e-5)


def gray_images(values: np.ndarray, side: int = 4):
    pixels = np.broadcast_to(values[:, np.newaxis, np.newaxis], (len(values), side, side)).astype(np.uint8)
    return array_set(SourceName("npz:x", "dataset"), pixels, ClassLabels(values % 2))


def test_pairs_are_of_one_image_and_an_epoch_has_each_once():
    values = np.arange(10, 90, 10)
    views = PLAIN._replace(brightness=0.04)
    batches = pairs_of_views(gray_images(values), (4, 4), views, batch_size=4, seed=1)
    epochs = [np.concatenate([batch.numpy() for batch in batches.skip(2 * epoch).take(2)]) for epoch in range(2)]
    for epoch in epochs:
        first, second = epoch.reshape(2, 2, 4, -1).swapaxes(0, 1)[..., 0]
        assert sorted(np.rint(first / 10).ravel() * 10) == list(values)
        np.testing.assert_array_equal(np.rint(first / 10), np.rint(second / 10))
        assert (first != second).all()
    assert (epochs[0] != epochs[1]).any()


def test_pixels_are_means_and_histograms_forget_places(rng):
    views = rng.integers(0, 256, (3, 32, 32, 3)).astype(np.float32)
    means = views.reshape(3, 16, 2, 16, 2, 3).mean((2, 4)).reshape(3, -1) / 255
    np.testing.assert_allclose(pixels(views), means, rtol=1e-5)
    assert pixels(views[:, :8, :8]).shape == (3, 192)
    shuffled = rng.permutation(views.reshape(3, -1, 3), axis=1).reshape(views.shape)
    found = histograms(views)
    np.testing.assert_array_equal(found, histograms(shuffled))
    np.testing.assert_allclose(np.square(found).sum(axis=1), 1, rtol=1e-5)
    assert histograms(views[..., :1]).shape == (3, 64)


def test_figures_are_those_of_the_library(rng):
    classes = rng.integers(0, 3, 60)
    features = np.eye(3)[classes] + 0.01 * rng.normal(size=(60, 3))
    images = gray_images(np.arange(60))

    def part(rows: slice) -> object:
        from dataclasses import replace

        names = tuple(f"x/{number % 2}{pictures.FINE}{number}.png" for number in range(60)[rows])
        return replace(images.take(np.arange(60)[rows]), classes=classes[rows], names=names)

    data = Data(part(slice(0, 40)), part(slice(40, 60)), (4, 4), np.zeros(1), np.ones(1))
    judged = judge(Features(features[:40], features[40:], classes[np.newaxis, 40:]), data, num_clusters=3)
    assert {name: judged["figures"][name] for name in ("knn", "linear", "ami", "ami_heads")} == pytest.approx(
        {"knn": 1, "linear": 1, "ami": 1, "ami_heads": 1}
    )
    assert judged["figures"]["fine_knn"] < 0.9
    assert unpack(judged["answers"]["knn"]).all()


def test_fonts_that_lack_letters_are_left_out():
    fonts = pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf"
    drawn = font_glyphs(fonts / "DejaVuSans.ttf")
    assert drawn is not None
    assert drawn.shape == (len(CHARACTERS), 32, 32)
    assert len(np.unique(drawn.reshape(len(drawn), -1), axis=0)) == len(CHARACTERS)
    # Nothing is cut off, and letters stand on one line.
    assert (np.concatenate([drawn[:, 0], drawn[:, -1], drawn[:, :, 0], drawn[:, :, -1]]) == 255).all()
    lowest = [np.flatnonzero((drawn[CHARACTERS.index(letter)] < 128).any(axis=1)).max() for letter in "AHIx"]
    assert len(set(lowest)) == 1
    assert font_glyphs(fonts / "STIXSizOneSymReg.ttf") is None


@pytest.mark.parametrize("name", ["emoji", "cliparts", "glyphs"])
def test_nothing_is_fetched_unasked(name, tmp_path):
    with pytest.raises(MissingPackageError, match="--download"):
        set_settings(name, tmp_path)
    assert not (tmp_path / name).exists()


def test_skin_tones_of_an_emoji_are_in_one_split(tmp_path):
    package = tmp_path / f"packages/emoji-datasource-google-{pictures.EMOJI_VERSION}/package"
    (package / "img/google/64").mkdir(parents=True)
    listed = []
    for number in range(40):
        names = [f"{number}-{tone}.png" for tone in range(3)]
        for name in names:
            Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(package / "img/google/64" / name)
        variants = {name: {"image": name} for name in names[1:]}
        kind = {"category": "Food & Drink", "subcategory": "fruit", "unified": str(number)}
        listed.append({"image": names[0], **kind, "skin_variations": variants})
    (package / "emoji.json").write_text(json.dumps(listed))
    assert set_settings("emoji", tmp_path)["dataset"] == f"folder:{tmp_path}/emoji"
    written = [(path.parts[-3], path.name) for path in (tmp_path / "emoji").rglob("*.png")]
    splits = {name.split(pictures.FINE)[1].split("-")[0]: split for split, name in written}
    assert len(written) == 120
    assert set(splits.values()) == {"train", "test"}
    assert all(splits[name.split(pictures.FINE)[1].split("-")[0]] == split for split, name in written)
    with Image.open(next((tmp_path / "emoji").rglob("*.png"))) as picture:
        assert picture.mode == "RGB"
        assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_cliparts_of_the_same_content_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_HELD_OUT_CLIPARTS", 3)
    monkeypatch.setattr(pictures, "_FEWEST", 2)
    root = tmp_path / "packages/openclipart-png/usr/share/openclipart/png"
    for number, name in enumerate(["a/x/1", "a/2", "a/3", "b/1", "b/2", "b/3", "c/1", "unsorted/1"]):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 300), (number, 0, 0)).save(path)
    (root / "b/4.png").write_bytes((root / "a/2.png").read_bytes())
    (root / "b/5.png").symlink_to(root / "b/1.png")
    set_settings("cliparts", tmp_path)
    written = sorted("/".join(path.parts[-2:]) for path in (tmp_path / "cliparts").rglob("*.png"))
    assert written == ["a/2.png", "a/3.png", "a/x-1.png", "b/1.png", "b/2.png", "b/3.png"]
    assert len(list((tmp_path / "cliparts/test").rglob("*.png"))) == 3


def test_the_sets_of_the_page_are_there():
    assert {"digits", "mnist", "fashion", "fashion-2000", "fashion-10000", "cliparts", "emoji", "glyphs", "glyphs-2000"} == {*SETS}


def test_a_teacher_labels_by_the_average_of_the_weights(rng):
    """The average that NumPy has of the weights after each step, in which the network itself is trained on as it was."""
    labels, model, values = sela_tf.LabelTable(T, K, N), make_model(), blobs(rng)
    model.compile(keras.optimizers.SGD(0.5), loss=sela_tf.SelfLabelLoss(labels))
    labelled_by, after_steps = [], []

    class Watched(TeacherLabelling):
        def write(self, step, outcome):
            labelled_by.append(self.model.get_weights())
            super().write(step, outcome)

    seen = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: after_steps.append(model.get_weights()))
    labelling = Watched(labels, pairs(values, 64), relabel_steps=[0, 12], verbose=False)
    model.fit(pairs(values), epochs=2, verbose=0, shuffle=False, callbacks=[seen, labelling])
    average = after_steps[0]
    for weights in after_steps[:12]:
        average = [0.99 * mean + 0.01 * weight for mean, weight in zip(average, weights, strict=True)]
    for mean, weight in zip(average, labelled_by[1], strict=True):
        np.testing.assert_allclose(weight, mean, rtol=1e-4, atol=1e-5)
    assert any(np.abs(mean - own).max() > 0.01 for mean, own in zip(average, after_steps[11], strict=True))
    assert all(np.abs(own - next_own).max() < 0.5 for own, next_own in zip(after_steps[11], after_steps[12], strict=True))


@pytest.mark.slow
def test_small_crops_are_learned_from():
    """A step on the same batch lowers the loss of its views and small crops together, by all weights."""
    config = config_of([*SMALL, "--learning_rate=0.05"])
    experiment = MultiCropExperiment(config, prepare_devices(config))
    batch = next(iter(experiment.views(0, 1)))
    before = experiment.model.get_weights()
    losses = [float(experiment.take_step(batch)["loss"]) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.1
    assert all(np.abs(old - new).max() > 0 for old, new in zip(before, experiment.model.get_weights(), strict=True))


@pytest.mark.slow
def test_rows_are_made_once(tmp_path, monkeypatch, capsys):
    tried = "num_clusters=10,num_heads=1,width=4,backbone=resnet8,batch_size=128,num_relabellings=3"
    results = tmp_path / "rows.jsonl"
    arguments = ["x", "--sets=digits", "--minutes=0.05", f"--try={tried}", f"--results={results}", f"--sets_dir={tmp_path}"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    rows = read_rows(results)
    assert [each["method"] for each in rows] == ["sela", "untrained", "raw", "histogram", "simclr"]
    run, simclr = rows[0], rows[-1]
    assert 0.5 * run["cpu_seconds"] < simclr["cpu_seconds"] < 2 * run["cpu_seconds"]
    assert {len(unpack(each["answers"]["knn"])) for each in rows} == {run["num_held_out"]}
    main()
    assert len(read_rows(results)) == 5
    with_measures = [each["method"] for each in rows if set(each.get("measures", ())) == {*JUDGED_BY}]
    assert with_measures == ["sela", "untrained", "raw"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--table"])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out.count("| digits |") == 5
