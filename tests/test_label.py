"""`python -m sela_tf.label`: files of labels of any images, from a real run."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import shutil

import keras
import numpy as np
import pyarrow.parquet
import pytest
from fixtures import Door, is_one_line, run_doors, run_here
from PIL import Image
from scipy.special import softmax
from sklearn.datasets import load_digits

import sela_tf
from sela_tf.cli import flags
from sela_tf.commands import label_viewers
from sela_tf.commands.label_balanced import balanced_clusters
from sela_tf.commands.label_blocks import StoredOutputs
from sela_tf.runs.finished import read_finished, write_finished
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_data

# its fixtures are made once: in one process of several
pytestmark = pytest.mark.xdist_group("label")


HEADS = (0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Digits as files of many sizes and modes, and what is no image."""
    root = tmp_path_factory.mktemp("images")
    for i, image in enumerate(load_digits().images[:60]):
        picture = Image.fromarray((image * 15.9).astype(np.uint8))
        picture = picture.resize((8 + i % 5, 8 + i % 3)) if i % 2 else picture.convert("RGB")
        picture.save(root / f"{i:03d}.{'jpg' if i % 7 == 0 else 'png'}")
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def written(finished, folder, tmp_path_factory) -> tuple[pathlib.Path, list[Door]]:
    """Every format, of the run's own images and of others, in one process."""
    workdir, _ = finished
    out = tmp_path_factory.mktemp("labels")
    run = f"--workdir={workdir}"
    doors = run_doors(
        [
            [run, f"--output={out}/own.parquet"],
            [run, f"--output={out}/own.csv", "--batch_size=77"],
            [run, f"--output={out}/own.npz", "--noembeddings"],
            [run, f"--output={out}/plain.parquet", "--nopotentials"],
            [run, f"--output={out}/balanced.parquet", "--balanced", "--batch_size=100"],
            [run, f"--output={out}/folder.parquet", f"--dataset=folder:{folder}", f"--projector={out}/projector"],
            [run, f"--output={out}/few.parquet", f"--dataset=folder:{folder}", "--balanced", "--neighbours=3"],
            [run, f"--output={out}/whole.parquet", "--dataset=digits", "--noembeddings", "--neighbours=0", "--nopictures"],
        ],
        "sela_tf.label",
    )
    for door in doors:
        assert door.returncode == 0, door.stderr
    return out, doors


def _columns(path: pathlib.Path) -> dict[str, np.ndarray]:
    table = pyarrow.parquet.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def _own(workdir: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, logits, embedding) of the run's images in the order of the file, from the network itself."""
    config = flags.from_flagfile(workdir / "flags.cfg")
    data = load_data(config)
    images = np.concatenate([data.train.images, data.held_out.images]).astype(np.float32)
    model = sela_tf.load_run(workdir)
    both = keras.Model(model.inputs, [model.output, model.get_layer("embedding").output])
    logits, embedding = both.predict(images, verbose=0)
    return images, logits, embedding


def test_clusters_probabilities_margins_and_embeddings_are_those_of_the_network(finished, written):
    workdir, _ = finished
    _, logits, embedding = _own(workdir)
    labels = np.load(workdir / "labels.npz")
    for name, offset in (("own", labels["potentials"] / labels["lam"]), ("plain", 0.0)):
        columns = _columns(written[0] / f"{name}.parquet")
        probabilities = softmax(logits + offset, axis=-1)
        best = np.sort(probabilities, axis=-1)
        for head in HEADS:
            np.testing.assert_array_equal(columns[f"cluster_{head}"], probabilities[:, head].argmax(axis=-1))
            np.testing.assert_allclose(columns[f"probability_{head}"], best[:, head, -1], atol=1e-5)
            np.testing.assert_allclose(columns[f"margin_{head}"], best[:, head, -1] - best[:, head, -2], atol=1e-5)
        np.testing.assert_allclose(columns["embedding"], embedding, atol=1e-5)
    # the argmax of lam log p + potentials, which is what the transport of the last step gives before it is balanced
    agree = columns["cluster_0"][: labels["labels"].shape[1]] == labels["labels"][0]
    assert agree.mean() > 0.3


def test_rows_are_in_order_and_say_which_image_they_are_of(finished, written):
    workdir, _ = finished
    columns = _columns(written[0] / "own.parquet")
    data = load_data(flags.from_flagfile(workdir / "flags.cfg"))
    counts = [len(data.train), len(data.held_out)]
    assert columns["split"].tolist() == ["train"] * counts[0] + ["eval"] * counts[1]
    # rows of the source, so that the file can be joined with it
    assert columns["index"].tolist() == [*data.train.rows, *data.held_out.rows]
    assert sorted(columns["index"]) == list(range(1797))
    pixels = np.rint(load_digits().images * (255 / 16))
    np.testing.assert_array_equal(pixels[columns["index"][: counts[0]]], data.train.images[..., 0])
    assert columns["class"].tolist() == [str(i) for i in (*data.train.classes, *data.held_out.classes)]
    labels = np.load(workdir / "labels.npz")
    assert columns["num_changes"][: counts[0]].tolist() == labels["num_changes"].sum(axis=0).tolist()
    assert all(value is None for value in columns["num_changes"][counts[0] :])


def test_the_runs_source_by_name_knows_which_images_were_trained_on(finished, written):
    workdir, _ = finished
    columns, own = (_columns(written[0] / f"{name}.parquet") for name in ("whole", "own"))
    assert columns["index"].tolist() == list(range(1797))
    assert "split" not in columns
    assert "split" not in written[1][7].stdout.splitlines()[0]
    order = np.argsort(own["index"])
    assert columns["num_changes"].tolist() == own["num_changes"][order].tolist()
    assert sum(value is not None for value in columns["num_changes"]) == np.load(workdir / "labels.npz")["labels"].shape[1]
    np.testing.assert_array_equal(columns["cluster_1"], own["cluster_1"][order])


def test_images_that_changed_since_are_told(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    arrays = dict(np.load(tmp_path / "run" / "labels.npz"))
    np.savez(tmp_path / "run" / "labels.npz", **{**arrays, "data_fingerprint": np.array("of other images")})
    write_finished(tmp_path / "run", read_finished(tmp_path / "run")._replace(labels_sha256=None))
    run, output = f"--workdir={tmp_path}/run", f"--output={tmp_path}/labels.csv"
    own, named = run_here([[run, output, "--noembeddings"], [run, output, "--noembeddings", "--dataset=digits"]], "sela_tf.label")
    assert (
        "these images are not those that the run was trained on (some were added, removed or changed since): num_changes"
        in own.stdout
    )
    assert "not those" not in named.stdout
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 1798


def test_csv_and_npz_hold_the_same(written):
    out, _ = written
    columns = _columns(out / "own.parquet")
    with (out / "own.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(columns["index"])
    arrays = np.load(out / "own.npz")
    assert set(arrays.files) == set(columns) - {"embedding", "neighbours", "picture"}
    for name in ("cluster_0", "probability_1", "margin_0", "disagreement"):
        np.testing.assert_allclose([float(row[name]) for row in rows], columns[name], atol=1e-6)
        np.testing.assert_allclose(arrays[name], columns[name], atol=1e-6)
    # Rounding may exchange the last of an image's neighbours, which moves its rank.
    assert np.mean(np.abs(arrays["look_here_first"] - columns["look_here_first"]) < 0.01) > 0.98
    np.testing.assert_allclose(np.sort(arrays["look_here_first"]), np.sort(columns["look_here_first"]), atol=0.01)
    np.testing.assert_allclose([float(row["embedding_3"]) for row in rows], columns["embedding"][:, 3], atol=1e-5)
    assert [row["num_changes"] == "" for row in rows] == [value is None for value in columns["num_changes"]]


@pytest.mark.parametrize(("name", "count"), [("own", 10), ("folder", 10), ("few", 3)])
def test_neighbours_are_the_nearest_rows_of_the_file(written, name, count):
    columns = _columns(written[0] / f"{name}.parquet")
    unit = columns["embedding"] / np.linalg.norm(columns["embedding"], axis=1, keepdims=True)
    distances = 1 - unit @ unit.T
    np.fill_diagonal(distances, np.inf)
    found = np.array([struct["distances"] for struct in columns["neighbours"]])
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :count], atol=1e-5)
    rows = np.array([struct["ids"] for struct in columns["neighbours"]])
    np.testing.assert_allclose(np.take_along_axis(distances, rows, axis=1), found, atol=1e-5)


def test_pictures_are_the_images_as_the_network_sees_them(finished, written, folder):
    data = load_data(flags.from_flagfile(finished[0] / "flags.cfg"))
    images = np.concatenate([data.train.images, data.held_out.images]).astype(np.float32)
    columns = _columns(written[0] / "own.parquet")
    for pixels, struct in zip(images[::50], columns["picture"][::50], strict=True):
        with Image.open(io.BytesIO(struct["bytes"])) as picture:
            shown = np.asarray(picture, np.float32)
        assert struct["path"] is None
        assert np.abs(shown[::8, ::8] - pixels[..., 0]).max() < 10
    for name in ("folder", "few"):
        columns = _columns(written[0] / f"{name}.parquet")
        assert [struct["path"] for struct in columns["picture"]] == [str(folder / name) for name in columns["name"]]
        assert len({struct["bytes"] for struct in columns["picture"]}) > 50
    assert {"picture", "neighbours"}.isdisjoint(_columns(written[0] / "whole.parquet"))


def test_a_projector_shows_the_rows_of_the_file(written):
    columns = _columns(written[0] / "folder.parquet")
    with (written[0] / "projector" / "metadata.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for name in ("name", "cluster_0", "cluster_1"):
        assert [row[name] for row in rows] == list(map(str, columns[name]))
    np.testing.assert_allclose(np.loadtxt(written[0] / "projector" / "embedding.tsv"), columns["embedding"], rtol=1e-4, atol=1e-6)
    with Image.open(written[0] / "projector" / "sprite.png") as sprite:
        assert sprite.size == (8 * 64, 8 * 64)
    assert "60 images for TensorBoard's projector" in written[1][5].stdout


def test_what_viewers_show_is_limited(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(label_viewers, "_MAX_IMAGES", 1796)
    monkeypatch.setattr(label_viewers, "MAX_POINTS", 25)
    settings = LabelConfig(workdir=str(finished[0]), output=str(tmp_path / "labels.parquet"), projector=str(tmp_path / "projector"))
    said = sela_tf.label_run(settings)
    assert "neighbours" not in said
    assert {"picture", "neighbours"}.isdisjoint(pyarrow.parquet.read_schema(tmp_path / "labels.parquet").names)
    assert len(np.loadtxt(tmp_path / "projector" / "embedding.tsv")) == 25
    with Image.open(tmp_path / "projector" / "sprite.png") as sprite:
        assert sprite.size == (5 * 64, 5 * 64)


def test_a_single_image_is_labelled_without_neighbours(finished, folder, tmp_path):
    (tmp_path / "single").mkdir()
    shutil.copy(folder / "001.png", tmp_path / "single")
    output = tmp_path / "labels.parquet"
    sela_tf.label_run(LabelConfig(workdir=str(finished[0]), dataset=f"folder:{tmp_path}/single", output=str(output)))
    table = pyarrow.parquet.read_table(output)
    assert len(table) == 1
    assert "picture" in table.column_names
    assert "neighbours" not in table.column_names


def test_balanced_clusters_are_balanced_exactly_and_better_than_any_swap(finished, written):
    workdir, _ = finished
    _, logits, _ = _own(workdir)
    for name in ("balanced", "few"):
        columns = _columns(written[0] / f"{name}.parquet")
        for head in HEADS:
            sizes = np.bincount(columns[f"cluster_{head}"], minlength=16)
            assert sizes.max() - sizes.min() <= 1, name
    columns = _columns(written[0] / "balanced.parquet")
    assert (columns["margin_0"] < 0).any(), "some images had to move"
    for head in HEADS:
        best = sela_tf.assign_labels(logits[:, head], lam=25.0)
        gained = np.take_along_axis(logits[:, head], columns[f"cluster_{head}"][:, np.newaxis], axis=1).mean()
        assert gained == pytest.approx(np.take_along_axis(logits[:, head], best.labels[:, np.newaxis], axis=1).mean(), abs=1e-4)
    assert "MB in" in written[1][4].stdout
    assert not list(written[0].glob(".unfinished*"))


def test_bounds_of_sizes_are_scaled_to_the_images_that_are_labelled(rng, capsys):
    """A run of 400 images with clusters of 30 to 120 labels 1001 of the same kind."""
    config = SelaConfig(dataset="digits", num_clusters=8, num_heads=2, cluster_sizes="30:120")
    heads = sela_tf.MultiHead(2, 8)
    heads.build((None, 5))
    inputs = np.concatenate([rng.normal(scale=0.1, size=(800, 5)), rng.normal(size=(201, 5))]).astype(np.float32)
    heads.set_weights([3 * rng.normal(size=each.shape) for each in heads.get_weights()])
    stored = StoredOutputs(inputs, inputs)
    clusters, _ = balanced_clusters(
        stored, heads, config, np.zeros((2, 8)), LabelConfig(workdir="-", output="-.csv"), num_trained=400, lam=25.0
    )
    for head in range(2):
        sizes = np.bincount(clusters[:, head], minlength=8)
        assert (sizes.min(), sizes.max()) == (75, 301), "both bounds are reached"


def test_folder_of_many_sizes(written, folder):
    columns = _columns(written[0] / "folder.parquet")
    assert columns["name"].tolist() == sorted(path.name for path in folder.iterdir() if path.suffix != ".txt")
    assert "split" not in columns
    assert all(value is None for value in columns["num_changes"])
    assert np.isfinite(columns["look_here_first"]).all()
    assert "1 files that are no images" in written[1][5].stdout


def test_summary_names_the_images_to_look_at_first(written):
    out, doors = written
    columns = _columns(out / "folder.parquet")
    worst = columns["name"][np.argsort(-columns["look_here_first"])[:5]]
    lines = doors[5].stdout.splitlines()[-5:]
    assert [line.split()[1] for line in lines] == worst.tolist()


def test_bad_input_is_refused_by_name(finished, folder, tmp_path, rng):
    workdir, _ = finished
    damaged = tmp_path / "damaged"
    shutil.copytree(workdir, damaged)
    (damaged / "labels.npz").write_bytes((workdir / "labels.npz").read_bytes()[:1000])
    cut, newer = tmp_path / "cut", tmp_path / "newer"
    for copy in (cut, newer):
        shutil.copytree(workdir, copy)
    (cut / "model.weights.h5").write_bytes((workdir / "model.weights.h5").read_bytes()[:1000])
    of_tomorrow = read_finished(newer)._replace(settings=("--a_flag_of_tomorrow=3",))
    write_finished(newer, of_tomorrow)
    (newer / "flags.cfg").write_text("--a_flag_of_tomorrow=3\n" + (workdir / "flags.cfg").read_text())
    np.savez(tmp_path / "same.npz", images=np.zeros((40, 8, 8), np.uint8))
    np.save(tmp_path / "vectors.npy", rng.normal(size=(30, 5)).astype(np.float32))
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(folder.iterdir())[:5]:
        shutil.copy(path, few)
    run, output = f"--workdir={workdir}", f"--output={tmp_path}/labels.parquet"
    commands = {
        "--workdir is missing": [output],
        "--output must be a file NAME.parquet, NAME.csv or NAME.npz. Received: --output=labels.txt": [run, "--output=labels.txt"],
        "NAME.npz. Received: --output=.csv": [run, "--output=.csv"],
        "labels.npz is read by this very command": [run, f"--output={workdir}/labels.npz"],
        "same.npz is read by this very command": [run, f"--output={tmp_path}/same.npz", f"--dataset=npz:{tmp_path}/same.npz"],
        "say which directory, as in folder:PATH": [run, output, "--dataset=folder:"],
        "holds no run": [f"--workdir={tmp_path}", output],
        "model.weights.h5 is missing or damaged, or of another network": [f"--workdir={cut}", output],
        "are damaged, or were written by another version of sela_tf": [f"--workdir={newer}", output],
        "labels.npz is missing or damaged": [f"--workdir={damaged}", output],
        "there is no directory": [run, "--output=/nowhere/labels.csv"],
        "is no directory that you may write to": [run, output, f"--projector={cut}/model.weights.h5"],
        "must be a local directory": [run, output, "--projector=gs://bucket/projector"],
        "is a directory: name a file in it": [run, f"--output={_directory(tmp_path)}"],
        "has vectors, and the network was made for images": [run, output, f"--dataset=features:{tmp_path}/vectors.npy"],
        "5 images, 16 clusters": [run, output, f"--dataset=folder:{few}", "--balanced"],
        "leave out --nopotentials": [run, output, "--balanced", "--nopotentials"],
        "--max_rejected=0.5 is for images of another --dataset": [run, output, "--max_rejected=0.5"],
        "there is no directory '/nowhere'": [run, output, "--dataset=folder:/nowhere"],
    }
    for (message, _), door in zip(commands.items(), run_here(list(commands.values()), "sela_tf.label"), strict=True):
        of_data = ("say which directory", "has vectors", "there is no directory '/nowhere'")
        is_one_line(door, message, door="sela_tf.label", status=3 if message.startswith(of_data) else 2)
    assert not (tmp_path / "labels.parquet").exists()


def _directory(root: pathlib.Path) -> pathlib.Path:
    path = root / "is_a.csv"
    path.mkdir()
    return path


def test_labels_file_says_how_often_heads_were_relabelled(finished):
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    counts = [sum(row["kind"] == "relabel" and row["head"] == head for row in rows) for head in HEADS]
    labels = np.load(finished[0] / "labels.npz")
    assert labels["num_relabellings"].tolist() == counts
    assert (labels["num_changes"].max(axis=1) < counts).all()
