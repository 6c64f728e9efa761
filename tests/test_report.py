"""The pictures that a run draws of itself at its end, and the numbers behind them."""

from __future__ import annotations

import base64
import gzip
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from fixtures import ROOT, SMALL, run_doors
from PIL import Image
from scipy.special import entr

from sela_tf.cli import flags
from sela_tf.commands.report import report_run
from sela_tf.evaluation.clustering import ENTROPY_BINS, cluster_metrics, entropy_histogram
from sela_tf.reporting.gallery import GallerySource, choose_gallery
from sela_tf.reporting.history import objective_curve
from sela_tf.settings.commands import ReportConfig
from sela_tf.training import page
from sela_tf.training.images import load_data


@pytest.fixture(scope="module")
def report(finished) -> dict:
    return json.loads((finished[0] / "report.json").read_text())


def _is_a_picture(path) -> bool:
    """Tells whether the file is a picture of some size, with more than one colour."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    return min(pixels.shape) > 200 and pixels.std() > 5


def test_pictures_are_there(finished):
    workdir, _ = finished
    names = [f"{kind}_{part}.png" for kind in ("lowest_entropy", "random") for part in ("held_out", "training")]
    assert sorted(path.name for path in (workdir / "galleries").iterdir()) == names
    for path in (workdir / "report.png", *(workdir / "galleries").iterdir()):
        assert _is_a_picture(path), path


def test_course_is_that_of_the_metrics(finished, report):
    workdir, _ = finished
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert report["loss"] == [[row["step"], row["loss"]] for row in rows if row["kind"] == "train"]
    assert [value for _, value in report["knn"]] == [row["knn"] for row in rows if row["kind"] == "epoch"]
    for head, relabellings in enumerate(report["relabellings"]):
        assert [row["kind"] for row in relabellings] == ["first_labels", *["relabel"] * (len(relabellings) - 1)]
        steps, values = objective_curve(relabellings)
        mine = [row for row in rows if row["kind"] == "relabel" and row["head"] == head]
        assert steps == [step for row in mine for step in [row["step"]] * 2]
        assert values == [value for row in mine for value in (row["objective_before"], row["objective_after"])]
    results = json.loads((workdir / "results.json").read_text())
    for column in ("trained", "untrained", "raw_pixels", "chance"):
        assert list(report["figures"][column]) == ["knn", "linear_probe", "nmi", "ami", "ari", "hungarian"]
    assert report["figures"]["trained"]["nmi"] == pytest.approx(np.mean(results["trained"]["nmi"]))
    assert f"kNN {results['trained']['knn']:.3f}" in report["verdict"]


def test_gallery_shows_members_of_its_clusters(finished, report):
    workdir, process = finished
    assert f"The run lies in {workdir}: report.html, results.json, report.png, galleries/, " in process.stdout
    labels = np.load(workdir / "labels.npz")["labels"][0]
    data = load_data(flags.from_flagfile(workdir / "flags.cfg"))
    shown = report["gallery"]
    entropies = {}
    for cluster in np.unique(labels):
        shares = np.bincount(data.train.classes[labels == cluster], minlength=10) / (labels == cluster).sum()
        entropies[int(cluster)] = entr(shares).sum()
    best = [one["cluster"] for one in shown["best"]]
    assert best == sorted(entropies, key=lambda cluster: entropies[cluster])[:8] or len(set(entropies.values())) < len(entropies)
    assert [one["entropy"] for one in shown["best"]] == pytest.approx(sorted(entropies.values())[:8])
    others = [one["cluster"] for one in shown["random"]]
    assert len(others) == 8
    assert not set(best) & set(others)
    for one in (*shown["best"], *shown["random"]):
        assert one["size"] == (labels == one["cluster"]).sum()
        assert len(one["members"]) == min(12, one["size"])
        assert (labels[one["members"]] == one["cluster"]).all()
        assert one["entropy"] == pytest.approx(entropies[one["cluster"]])
        counts = np.bincount(data.train.classes[labels == one["cluster"]])
        assert (one["class"], one["share"]) == (str(counts.argmax()), pytest.approx(counts.max() / one["size"]))
        assert all(0 <= index < len(data.held_out) for index in one["held_out_members"])


def test_cluster_sizes(finished, report):
    labels = np.load(finished[0] / "labels.npz")["labels"]
    for head, sizes in enumerate(report["cluster_sizes"]):
        assert sizes["labels"] == sorted(np.bincount(labels[head], minlength=16).tolist(), reverse=True)
        assert sum(sizes["network"]) == labels.shape[1]


def test_entropy_histogram(rng):
    classes = np.repeat(np.arange(4), 100)
    pure, mixed = classes.copy(), np.tile(np.arange(4), 100)
    assert entropy_histogram(classes, pure) == [4] + [0] * (ENTROPY_BINS - 1)
    assert entropy_histogram(classes, mixed) == [0] * (ENTROPY_BINS - 1) + [4]
    some = rng.integers(0, 30, 400)
    counts = np.array(entropy_histogram(classes, some))
    assert counts.sum() == len(np.unique(some))
    centres = (np.arange(ENTROPY_BINS) + 0.5) * np.log(4) / ENTROPY_BINS
    assert counts @ centres / counts.sum() == pytest.approx(cluster_metrics(classes, some).entropy, abs=np.log(4) / ENTROPY_BINS)


def test_without_classes_the_most_confident_come_first(rng):
    labels = np.array([0, 0, 1, 1, 2, 2, 4, 4])
    """On held-out images: on training images the network is sure of its labels."""
    confidence = np.array([1, 1, 0.9, 0.9, 0.5, 0.6, 0.3, 0.3])
    held_out, sure = np.array([1, 1, 3, 2, 4]), np.array([0.9, 0.7, 1, 0.6, 0.3])
    shown = choose_gallery(GallerySource(labels, 5, None, None, confidence, held_out, sure), seed=0)
    assert [one["cluster"] for one in shown["best"]] == [1, 2, 4, 0]  # 3 has no training image, and 0 no held-out one
    assert shown["random"] == []
    assert sorted(shown["best"][0]["held_out_members"]) == [0, 1]
    assert shown["best"][1]["confidence"] == pytest.approx(0.55)
    assert [(one["held_out_size"], one["held_out_confidence"]) for one in shown["best"]] == [
        (2, pytest.approx(0.8)),
        (1, pytest.approx(0.6)),
        (1, pytest.approx(0.3)),
        (0, 0.0),
    ]
    assert "entropy" not in shown["best"][0]


_WITHOUT_MATPLOTLIB = """
import sys
import sela_tf.training.report
def fail(*args):
    raise RuntimeError("no ink")
sela_tf.training.report.draw_report = fail
from sela_tf.train import main
sys.exit(main(["sela_tf.train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_picture_that_fails_costs_no_training(tmp_path):
    command = [sys.executable, "-c", _WITHOUT_MATPLOTLIB, *SMALL, "--epochs=1", "--report", f"--workdir={tmp_path}/run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "WARNING: the report could not be drawn: RuntimeError: no ink" in done.stdout
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_runs_without_classes_of_vectors_and_without_a_report(tmp_path, rng):
    """None of which has all there is to be drawn."""
    vectors = rng.normal(size=(300, 6)).astype(np.float32) + np.repeat(4 * np.eye(6)[:3], 100, axis=0).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    short = ("--epochs=1", "--report")
    small = ("--backbone=identity", "--width=0", "--hidden_units=16", "--num_clusters=5")
    doors = run_doors(
        [
            [*SMALL, *short, "--classes=none", f"--workdir={tmp_path}/blind"],
            [*SMALL, *short, f"--dataset=features:{tmp_path}/vectors.npy", *small, f"--workdir={tmp_path}/vectors"],
            [*SMALL, "--epochs=1", f"--workdir={tmp_path}/none"],
            [*SMALL, *short, "--num_clusters=4", f"--workdir={tmp_path}/few"],
        ]
    )
    for door in doors:
        assert door.returncode == 0, door.stderr
    names = sorted(path.name for path in (tmp_path / "blind" / "galleries").iterdir())
    assert names == [f"{kind}_{part}.png" for kind in ("highest_confidence", "random") for part in ("held_out", "training")]
    for run in ("blind", "vectors"):
        assert _is_a_picture(tmp_path / run / "report.png")
        assert json.loads((tmp_path / run / "report.json").read_text())["verdict"].startswith("It ")
    assert not (tmp_path / "vectors" / "galleries").exists()
    # eight or fewer clusters are all among the best
    few = sorted(path.name for path in (tmp_path / "few" / "galleries").iterdir())
    assert few == ["lowest_entropy_held_out.png", "lowest_entropy_training.png"]
    assert not {"report.png", "report.json", "galleries"} & {path.name for path in (tmp_path / "none").iterdir()}


@pytest.mark.slow
def test_a_page_of_many_images_shows_some_and_says_so(finished, tmp_path, monkeypatch):
    workdir = pathlib.Path(shutil.copytree(finished[0], tmp_path / "run"))
    monkeypatch.setattr(page, "MOST_SHOWN", 300)
    monkeypatch.setattr(page, "MOST_HELD_OUT", 50)
    report_run(ReportConfig(workdir=str(workdir)))
    text = (workdir / "report.html").read_text()
    assert "250 of 1344 training images are on this page, drawn at random" in text
    assert "50 of 453 held-out images are on this page" in text
    packed = dict(re.findall(r'id="data-(\w+)">([^<]*)<', text))
    facts = json.loads(gzip.decompress(base64.b64decode(packed["facts"])))
    assert len(facts["sources"]) == len(set(facts["sources"])) == 300
    sizes = np.frombuffer(gzip.decompress(base64.b64decode(packed["sizes"])), facts["kinds"]["sizes"])
    assert sizes.sum() == 2 * 1344
