"""The door and the trainer: real processes on real images, as a user starts them."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from fixtures import ROOT, SMALL, is_one_line, run_door, run_doors
from PIL import Image
from sklearn.datasets import load_digits
from tensorflow.compat.v1.train import summary_iterator

import sela_tf
from sela_tf.data.sources import load_source
from sela_tf.data.splits import hold_out, is_held_out
from sela_tf.settings.fields import ConfigError
from sela_tf.transport.marginals import check_marginals


def rows(workdir: pathlib.Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def assert_no_warnings(workdir: pathlib.Path) -> None:
    """A training that goes well is not complained of; but for waiting, which a busy machine may bring about."""
    assert [row for row in rows(workdir) if row["kind"] == "warning"] == []


class TestFinishedRun:
    def test_prints_a_line_a_relabelling_and_the_table(self, finished):
        workdir, process = finished
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
        relabel = re.compile(r"relabel step \d+ head [01]: \d+ iterations, [\d.]+% changed, objective [\d.]+ -> [\d.]+, [\d.]+ s$")
        assert sum(bool(relabel.match(line)) for line in process.stdout.splitlines()) == 2 * (3 + 1)
        assert (
            len(re.findall(r"^epoch \d/2: loss [\d.]+, kNN [\d.]+, \d+ images/s, waiting \d+%$", process.stdout, re.MULTILINE)) == 2
        )
        assert "linear probe" in process.stdout
        assert str(workdir) in process.stdout.splitlines()[-1]

    def test_files(self, finished):
        workdir, _ = finished
        names = {
            ".lock",
            "flags.cfg",
            "network.json",
            "model.weights.h5",
            "labels.npz",
            "metrics.jsonl",
            "results.json",
            "timings.jsonl",
            "checkpoints",
            "tensorboard",
            "report.json",
            "report.png",
            "galleries",
        }
        assert {path.name for path in workdir.iterdir()} == names
        assert [path.name for path in sorted((workdir / "checkpoints").iterdir())] == ["step-00000021", "step-00000042"]
        events = [
            summary
            for file in (workdir / "tensorboard").iterdir()
            for event in summary_iterator(str(file))
            for summary in event.summary.value
        ]
        assert {"train/loss", "epoch/knn", "relabel/head1/marginal_error"} <= {value.tag for value in events}
        with np.load(workdir / "labels.npz") as labels:
            assert labels["labels"].shape == labels["training_labels"].shape == labels["num_changes"].shape == (2, 1344)
            assert labels["potentials"].shape == (2, 16)
            assert float(labels["lam"]) == 25.0
            assert len(str(labels["data_fingerprint"])) == 64
            # three relabellings and the last one; the first does not count as a change
            assert labels["num_changes"].max() <= 3
            sizes = np.stack([np.bincount(head, minlength=16) for head in labels["labels"]])
        assert sizes.min() == sizes.max() == 1344 / 16

    def test_results(self, finished):
        workdir, _ = finished
        results = json.loads((workdir / "results.json").read_text())
        assert set(results) == {"trained", "untrained", "chance", "training_labels", "transport", "config", "data"}
        assert results["transport"]["converged"] == [True, True]
        for network in ("trained", "untrained"):
            agreement = {"nmi", "ami", "ari", "hungarian", "purity", "entropy"}
            assert set(results[network]) == {"knn", "linear_probe", "clusters_used", "protocol"} | agreement
            assert len(results[network]["nmi"]) == 2
        assert results["trained"]["knn"] > 0.8
        assert results["trained"]["ami"][0] > 0.2
        assert results["config"]["num_clusters"] == 16

    def test_metrics_are_repeatable_numbers_and_timings_are_apart(self, finished):
        workdir, _ = finished
        metrics, timings = rows(workdir), rows(workdir, "timings.jsonl")
        assert not any("second" in key for row in metrics for key in row)
        relabel = [row for row in metrics if row["kind"] == "relabel"]
        assert {row["step"] for row in relabel} == {0, 8, 29, 42}
        for row in relabel:
            assert row["converged"]
            assert row["marginal_error"] <= 1e-3
            assert row["smallest_cluster"] == row["largest_cluster"] == 1344 / 16
            assert row["objective_after"] <= row["objective_before"] + 1e-5
            assert 0 <= row["rounding_gap"] < 1e-3
            assert 0 <= row["nmi_with_previous"] <= 1
            assert row["information_share"] == pytest.approx(row["information"] / np.log(16))
        # the course of the agreement with the classes begins at random and ends with what results.json has
        first = [row for row in metrics if row["kind"] == "first_labels"]
        assert [(row["step"], row["head"]) for row in first] == [(0, 0), (0, 1)]
        assert max(row["ami"] for row in first) < 0.02
        last = json.loads((workdir / "results.json").read_text())["training_labels"]
        for name in ("nmi", "ami", "ari", "hungarian", "purity", "entropy"):
            assert [row[name] for row in relabel[-2:]] == last[name]
        assert [row["step"] for row in metrics if row["kind"] == "train"] == list(range(1, 43))
        epochs = [row for row in metrics if row["kind"] == "epoch"]
        assert [row["step"] for row in epochs] == [21, 42]
        mean = np.mean([row["loss"] for row in metrics if row["kind"] == "train"][:21])
        assert epochs[0]["loss"] == pytest.approx(mean, rel=1e-5)
        assert {row["kind"] for row in timings} - {"warning"} == {"relabel", "epoch"}

    def test_load_run_gives_the_trained_network(self, finished):
        workdir, _ = finished
        model = sela_tf.load_run(workdir)
        digits = load_digits()
        embedding = keras.Model(model.input, model.get_layer("embedding").output)
        images = np.rint(digits.images * (255 / 16))[..., np.newaxis].astype(np.float32)
        assert embedding.predict(images, verbose=0).shape == (1797, 32)
        # the labels of the run follow from its network and its potentials, but for the few that were moved to balance them
        with np.load(workdir / "labels.npz") as labels:
            train, _ = hold_out(load_source("digits").train, 0.25)
            logits = model.predict(train.images.astype(np.float32), verbose=0)
            again = (25.0 * logits + labels["potentials"]).argmax(axis=2).T
            assert (again == labels["labels"]).mean() > 0.95

    @pytest.mark.slow
    def test_flags_rerun_the_same_thing(self, finished, tmp_path):
        """The same command twice on one device: the same bits."""
        workdir, _ = finished
        again = run_door(f"--flagfile={workdir / 'flags.cfg'}", f"--workdir={tmp_path / 'again'}")
        assert again.returncode == 0, again.stderr
        for name in ("metrics.jsonl", "results.json", "flags.cfg", "model.weights.h5", "labels.npz"):
            assert (tmp_path / "again" / name).read_bytes() == (workdir / name).read_bytes(), name

    def test_the_same_command_says_so_and_other_settings_are_refused(self, finished):
        workdir, _ = finished
        before = (workdir / "results.json").read_bytes()
        again, other = run_doors([[*SMALL, f"--workdir={workdir}"], [*SMALL, f"--workdir={workdir}", "--lam=10"]])
        assert again.returncode == 0
        assert "finished" in again.stdout
        assert "linear probe" in again.stdout
        assert other.returncode == 2
        assert "--lam was 25.0, is 10.0" in other.stderr
        assert (workdir / "results.json").read_bytes() == before

    def test_load_run_of_what_is_no_finished_run(self, finished, tmp_path):
        with pytest.raises(ConfigError, match="holds no run"):
            sela_tf.load_run(tmp_path)
        (tmp_path / "flags.cfg").write_bytes((finished[0] / "flags.cfg").read_bytes())
        with pytest.raises(ConfigError, match="not finished"):
            sela_tf.load_run(tmp_path)


@pytest.mark.slow
def test_known_labels_and_a_prior_through_the_door(tmp_path):
    """A few clusters given by their class; sizes by a prior; plain labels without the exact balance."""
    digits, held_out = hold_out(load_source("digits").train, 0.25)
    known = np.sort(np.random.default_rng(0).permutation(len(digits))[:40])
    source = load_source("digits").train
    rows = [*digits.rows[known], *held_out.rows[:7]]
    lines = [f"{row},{source.classes[row]}.0" for row in rows]
    (tmp_path / "known.csv").write_text("\n".join(["index,cluster", *lines]))
    (tmp_path / "wrong.csv").write_text("index,cluster\n5000,0\n")
    command = [*SMALL, "--num_clusters=10", "--epochs=1", "--num_relabellings=1"]
    with_known, with_prior, wrong, misspelt = run_doors(
        [
            [*command, f"--workdir={tmp_path / 'known'}", f"--known_labels={tmp_path / 'known.csv'}"],
            [*command, f"--workdir={tmp_path / 'prior'}", "--marginals=zipf:0.3", "--noexact_balance"],
            [*command, f"--workdir={tmp_path / 'wrong'}", f"--known_labels={tmp_path / 'wrong.csv'}"],
            [*command, f"--workdir={tmp_path / 'misspelt'}", "--marginals=zip"],
        ]
    )
    assert with_known.returncode == with_prior.returncode == 0, with_known.stderr + with_prior.stderr
    assert wrong.returncode == misspelt.returncode == 2
    assert "line 2 of --known_labels=" in wrong.stderr
    assert "none of the 1344 training images, nor of those left out, has the row '5000'" in wrong.stderr
    assert "--known_labels: 7 labels are of images that are not trained on, and are left out" in with_known.stdout
    assert "--marginals=zip: " in misspelt.stderr
    with np.load(tmp_path / "known" / "labels.npz") as labels:
        for head in labels["labels"]:
            np.testing.assert_array_equal(head[known], digits.classes[known])
            assert set(np.bincount(head)) == {134, 135}
    with np.load(tmp_path / "prior" / "labels.npz") as labels:
        for head in labels["labels"]:
            sizes = np.sort(np.bincount(head, minlength=10))[::-1]
            assert sizes[0] > 1.5 * sizes[-1]
            assert np.corrcoef(sizes, check_marginals("zipf:0.3", 10))[0, 1] > 0.9


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_continues(finished, tmp_path, number):
    """Stopped within the first epoch, continued: the labels and losses of the run that was left alone."""
    command = [sys.executable, "-m", "sela_tf.train", *SMALL, f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (metrics.exists() and '"train", "step": 3' in metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 128 + number, err
    stopped = re.search(r"stopped and saved at step (\d+)", out)
    assert stopped, out
    assert 3 <= int(stopped[1]) < 42
    assert f"--workdir={tmp_path / 'run'}" in out.splitlines()[-1]
    continued = run_door(*SMALL, f"--workdir={tmp_path / 'run'}")
    assert continued.returncode == 0, continued.stderr
    assert f"continues at step {stopped[1]}" in continued.stdout
    interrupted, whole = rows(tmp_path / "run"), rows(finished[0])
    assert [(row["kind"], row["step"]) for row in interrupted] == [(row["kind"], row["step"]) for row in whole]
    for a, b in zip(interrupted, whole, strict=True):
        if a["kind"] == "train":
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4), a["step"]


@pytest.mark.slow
def test_more_epochs_continue_a_finished_run(finished, tmp_path):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", finished[0], workdir], check=True)
    longer = run_door(*SMALL, f"--workdir={workdir}", "--epochs=3")
    assert longer.returncode == 0, longer.stderr
    assert "continues at step 42" in longer.stdout
    assert max(row["step"] for row in rows(workdir)) == 63
    assert json.loads((workdir / "results.json").read_text())["config"]["epochs"] == 3


def test_a_run_without_its_checkpoints_is_kept_and_not_trained_anew(finished, tmp_path):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", finished[0], workdir], check=True)
    subprocess.run(["rm", "-r", workdir / "checkpoints"], check=True)
    before = (workdir / "metrics.jsonl").read_bytes(), (workdir / "results.json").read_bytes()
    same, longer = run_doors([[*SMALL, f"--workdir={workdir}"], [*SMALL, f"--workdir={workdir}", "--epochs=3"]])
    assert same.returncode == 0
    assert "finished" in same.stdout
    is_one_line(longer, "its checkpoints are gone or damaged")
    assert ((workdir / "metrics.jsonl").read_bytes(), (workdir / "results.json").read_bytes()) == before


@pytest.mark.slow
def test_one_class_and_few_images(tmp_path, rng):
    """What has one class only is evaluated as if it had none; a dry run takes as many images as there are."""
    images = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "one.npz", images=images, classes=np.zeros(40, int))
    np.savez(tmp_path / "few.npz", images=images[:6], eval_images=images)
    tiny = [*SMALL, "--num_clusters=2", "--batch_size=4", "--epochs=1"]
    one, dry = run_doors(
        [
            [*tiny, f"--dataset=npz:{tmp_path}/one.npz", f"--workdir={tmp_path}/run"],
            [*tiny, f"--dataset=npz:{tmp_path}/few.npz", "--dry_run"],
        ]
    )
    assert one.returncode == 0, one.stderr
    assert "all training images have the same class label" in one.stdout
    assert dry.returncode == 0, dry.stderr


@pytest.mark.slow
def test_changed_images_are_not_continued(tmp_path, rng):
    for i in range(2):
        np.savez(tmp_path / f"{i}.npz", images=rng.integers(0, 256, (200, 8, 8), dtype=np.uint8))
    os.replace(tmp_path / "0.npz", tmp_path / "x.npz")
    flags = (*SMALL, f"--dataset=npz:{tmp_path / 'x.npz'}", "--epochs=1", f"--workdir={tmp_path / 'run'}")
    assert run_door(*flags).returncode == 0
    os.replace(tmp_path / "1.npz", tmp_path / "x.npz")
    is_one_line(run_door(*flags, "--epochs=2"), "not the same any more")


def test_folder_of_many_sizes_without_classes(tmp_path, rng):
    """Everything but what needs classes; and the images that are no images are named."""
    root = tmp_path / "images"
    root.mkdir()
    for i in range(150):
        size = tuple(rng.integers(9, 40, 2))
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert("RGB" if i % 2 else "L").save(
            root / f"{i}.{'jpg' if i % 3 else 'png'}"
        )
    (root / "notes.txt").write_text("hello")
    folder = (*SMALL, f"--dataset=folder:{root}", "--num_clusters=8", "--hue=0.1", "--epochs=1", f"--workdir={tmp_path / 'run'}")
    asked, process = run_doors([folder, (*folder, "--image_size=16")])
    assert process.returncode == 0, process.stderr
    assert "100 jpeg, 50 png" in process.stdout
    assert "left out, 1 files that are no images" in process.stdout
    assert "The images have no class labels: kNN, linear probe, NMI" in process.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trained"]["knn"] is None
    assert results["trained"]["reason"] == "the images have no class labels"
    with np.load(tmp_path / "run" / "labels.npz") as labels:
        assert labels["names"].shape == (labels["labels"].shape[1],)
    assert asked.returncode == 2
    assert "many sizes" in asked.stderr
    assert "--image_size" in asked.stderr


@pytest.mark.slow
def test_labels_of_another_run_rotations_and_unequal_classes(finished, tmp_path):
    """Labels are kept to the end; the rotation head is trained and not part of the network that is kept; classes thin out."""
    source = f"--labels_from={finished[0] / 'labels.npz'}"
    kept = [*SMALL, source, "--num_relabellings=0"]
    np.savez(tmp_path / "oblong.npz", images=np.zeros((200, 8, 10), np.uint8))
    oblong = ["--rotation", f"--dataset=npz:{tmp_path}/oblong.npz", f"--workdir={tmp_path}/x"]
    transfer, rotation, heavy, relabelled, other_images, other_heads, no_labels, no_classes, not_square = run_doors(
        [
            [*kept, "--width=4", f"--workdir={tmp_path}/transfer"],
            [*kept, "--rotation", "--epochs=3", f"--workdir={tmp_path}/rotation"],
            [*SMALL, "--imbalance=heavy", "--epochs=1", f"--workdir={tmp_path}/heavy"],
            [*SMALL, source, f"--workdir={tmp_path}/x"],
            [*kept, "--imbalance=light", f"--workdir={tmp_path}/x"],
            [*kept, "--num_heads=1", f"--workdir={tmp_path}/x"],
            [*SMALL, "--num_relabellings=0", f"--labels_from={finished[0] / 'flags.cfg'}", f"--workdir={tmp_path}/x"],
            [*SMALL, "--imbalance=light", "--classes=none", f"--workdir={tmp_path}/x"],
            [*SMALL, *oblong],
        ]
    )
    with np.load(finished[0] / "labels.npz") as given:
        labels = given["labels"]
    for door, name in ((transfer, "transfer"), (rotation, "rotation")):
        assert door.returncode == 0, door.stderr
        with np.load(tmp_path / name / "labels.npz") as after:
            np.testing.assert_array_equal(after["training_labels"], labels)
        losses = [row["loss"] for row in rows(tmp_path / name) if row["kind"] == "train"]
        assert np.mean(losses[-3:]) < losses[0] - 0.1
    turned = [row["rotation_loss"] for row in rows(tmp_path / "rotation") if row["kind"] == "train"]
    assert turned[0] == pytest.approx(np.log(4), rel=0.05)
    assert np.mean(turned[-3:]) < 0.8 * turned[0]
    model = sela_tf.load_run(tmp_path / "rotation")
    # nothing else is in the file
    model.save_weights(tmp_path / "again.weights.h5")
    assert (tmp_path / "again.weights.h5").read_bytes() == (tmp_path / "rotation" / "model.weights.h5").read_bytes()
    assert model.output.shape == (None, 2, 16)
    _, held_out = hold_out(load_source("digits").train, 0.25)
    clusters = model(held_out.images.astype(np.float32)).numpy().argmax(axis=2)
    used = json.loads((tmp_path / "rotation" / "results.json").read_text())["trained"]["clusters_used"]
    assert used == [len(np.unique(clusters[:, head])) for head in range(2)]

    assert heavy.returncode == 0, heavy.stderr
    assert "of 1344 training images are kept" in heavy.stdout
    is_one_line(relabelled, "add --num_relabellings=0")
    is_one_line(other_images, "other images than the 1277 training images")
    is_one_line(other_heads, "has 2 heads of 16 clusters")
    is_one_line(no_labels, "is not the labels.npz of a run")
    is_one_line(no_classes, "--imbalance=light needs class labels")
    is_one_line(not_square, "which must be square, not 8 x 10: give --image_size")


@pytest.mark.slow
def test_replicas_share_turned_views_alike(tmp_path):
    """The batches are made for as many devices as there are."""
    program = (
        "import sys; from sela_tf import experiment, flags, parts, trainer; from absl import flags as absl_flags\n"
        "values = absl_flags.FlagValues(); flags.define(values, trainer.SelaConfig); flags.parse(values, sys.argv[:-1])\n"
        "def views(*args, replicas, **steps):\n"
        "    print('replicas', replicas); return parts.training_views(*args, replicas=replicas, **steps)\n"
        "experiment.training_views = views\n"
        "trainer.run(flags.settings(values, trainer.SelaConfig), sys.argv[-1])\n"
    )
    arguments = [*SMALL, "--epochs=1", "--rotation", "--rotation_share=0.25", "--logical_cpus=2", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "replicas 2" in done.stdout


@pytest.mark.slow
def test_a_rotated_run_continues(tmp_path):
    """The state of the head that is not exported is part of a checkpoint."""
    way = [*SMALL, "--rotation", "--num_relabellings=1"]
    whole, half, rest = run_doors(
        [
            [*way, f"--workdir={tmp_path}/whole"],
            [*way, "--epochs=1", f"--workdir={tmp_path}/parts"],
            [*way, f"--workdir={tmp_path}/parts"],
        ]
    )
    assert whole.returncode == half.returncode == rest.returncode == 0, rest.stderr
    # the first epoch of one and of two have the same learning rate, and both relabel once, before the first step
    names = ("step", "loss", "heads_loss", "rotation_loss")
    one, two = (
        [[row[name] for name in names] for row in rows(tmp_path / run) if row["kind"] == "train"] for run in ("whole", "parts")
    )
    assert len(one) == 42
    assert one == two


@pytest.mark.slow
def test_other_ways_to_train(tmp_path):
    ways = [
        ["--mixed_precision=bfloat16"],
        ["--mixed_precision=float16"],
        ["--xla"],
        ["--label_view=training", "--lr_schedule=cosine", "--noexact_balance"],
    ]
    common = [*SMALL, "--epochs=1", "--num_relabellings=1", "--hidden_units=16"]
    for way, process in zip(ways, run_doors([[*common, *way, f"--workdir={tmp_path / way[0]}"] for way in ways]), strict=True):
        assert process.returncode == 0, (way, process.stderr)
        losses = [row["loss"] for row in rows(tmp_path / way[0]) if row["kind"] == "train"]
        assert losses[0] == pytest.approx(np.log(16), rel=0.02), way
        assert np.mean(losses[-3:]) < losses[0] - 0.05, way


@pytest.mark.slow
def test_recipes_dry_run():
    """At full size on images made on the fly: the networks and heads of the paper take a step."""
    heads = {
        "imagenet_alexnet_3kx1": (1, 3000), "imagenet_alexnet_3kx10": (10, 3000), "imagenet_resnet50_3kx10": (10, 3000),
        "cifar10_128x10": (10, 128),  # as those of CIFAR-100 and SVHN but for the images
        "cifar10_128x1_imbalanced": (1, 128), "imagenet_alexnet_rot": (10, 3000), "imagenet_alexnet_transfer": (10, 3000),
    }  # fmt: skip
    # the labels of a run that is not here
    doors = run_doors([[f"--flagfile=configs/{name}.cfg", "--dataset=synthetic", "--labels_from=", "--dry_run"] for name in heads])
    for (name, shape), door in zip(heads.items(), doors, strict=True):
        assert door.returncode == 0, door
        assert f"heads: {shape}" in door.stdout, name
        assert f"(ln K = {np.log(shape[1]):.4f})" in door.stdout, name


def test_dry_run_writes_nothing(tmp_path):
    before = {
        path
        for path in ROOT.rglob("*")
        if "__pycache__" not in path.parts and ".venv" not in path.parts and ".git" not in path.parts
    }
    process = run_door(*SMALL, "--dry_run", f"--workdir={tmp_path / 'run'}")
    after = {
        path
        for path in ROOT.rglob("*")
        if "__pycache__" not in path.parts and ".venv" not in path.parts and ".git" not in path.parts
    }
    assert after == before
    assert process.returncode == 0, process.stderr
    assert re.search(r"sela_resnet8: [\d,]+ parameters", process.stdout)
    assert "one step on 8 images: loss 2.77" in process.stdout
    assert re.search(r"one transport of 4096 x 16: \d+ iterations", process.stdout)
    assert re.search(
        r"hours: training [\d.e-]+, label passes [\d.e-]+, transport [\d.e-]+, looking at images [\d.e-]+, kNN [\d.e-]+, linear probes, "
        r"at most [\d.e-]+, agreement with classes [\d.e-]+\n",
        process.stdout,
    )
    for phase in ("training", "relabelling", "a label pass", "evaluation"):
        assert f"  besides, in {phase}: " in process.stdout
    (peak,) = re.findall(r"peak of memory about ([\d.]+) GiB", process.stdout)
    assert 0.2 < float(peak) < 3
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_dry_run_of_more_images_than_there_could_be():
    """ImageNet's number, of which no pixels are made: counts, steps and memory are those of all of them."""
    settings = [
        "--dataset=synthetic:1281167",
        "--image_size=16",
        "--backbone=resnet8",
        "--width=4",
        "--num_clusters=100",
        "--num_heads=2",
    ]
    few, all_of_them = run_doors([[*settings, "--dataset=synthetic:6000", "--dry_run"], [*settings, "--dry_run"]])
    assert all_of_them.returncode == 0, all_of_them.stderr
    held_out = sum(is_held_out(str(row), 0.1) for row in range(1_281_167))
    assert f"{1_281_167 - held_out} training images, {held_out} held out" in all_of_them.stdout
    assert f"400 epochs of {(1_281_167 - held_out) // 256} steps" in all_of_them.stdout
    features = (1_281_167 - held_out) * 16 * 4 / 2**30
    assert f"besides, in relabelling: features {features:.2f}, log-probabilities of a head (float32) {features * 100 / 16:.2f}" in (
        all_of_them.stdout
    )
    hours = [float(re.search(r"label passes ([\d.e+-]+)", door.stdout)[1]) for door in (few, all_of_them)]
    assert hours[1] > 50 * hours[0]


@pytest.mark.slow
def test_eval_dataset_wins_over_the_test_split(tmp_path, rng):
    """Another file, colour instead of gray, of another size and with its classes numbered otherwise."""
    classes = np.arange(60) % 2
    images = (rng.integers(0, 60, (60, 8, 8)) + 150 * classes[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "train.npz", images=images, classes=classes * 3 + 4, eval_images=images[:9], eval_classes=np.zeros(9, int))
    colour = np.repeat(images[:30].repeat(2, axis=1).repeat(2, axis=2)[..., np.newaxis], 3, axis=-1)
    np.savez(tmp_path / "eval.npz", images=colour, classes=classes[:30] * 3 + 4)
    process = run_door(
        *SMALL, f"--dataset=npz:{tmp_path}/train.npz", f"--eval_dataset=npz:{tmp_path}/eval.npz", "--num_clusters=4", "--batch_size=20",
        "--epochs=1", f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "60 training images, 30 held out, 8 x 8 x 1" in process.stdout
    assert json.loads((tmp_path / "run" / "results.json").read_text())["trained"]["knn"] == 1.0


def test_version_and_help():
    version = run_door("--version")
    assert version.returncode == 0
    assert re.match(rf"sela_tf {sela_tf.__version__}, TensorFlow 2\.\d+\.\d+, Keras 3\.\d+\.\d+, devices .*CPU:0", version.stdout)
    assert version.stderr == ""
    text = run_door("--help").stdout
    assert "--num_clusters" in text
    assert "--workdir" in text


def test_bad_input_is_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "bad.cfg").write_text("# a comment\n--num_cluster=3\n")
    cases = {
        ("--dataset=digitz",): "--dataset=digitz: unknown",
        (f"--dataset=folder:{tmp_path}/empty",): f"no jpeg, png, gif or bmp image in '{tmp_path}/empty'",
        (f"--dataset=folder:{tmp_path}/corrupt",): "1 of 1 images cannot be read: a.png (a damaged or cut png)",
        ("--num_clusters=2000",): "--num_clusters=2000 exceeds the 1344 training images",
        ("--num_clusters=1",): "--num_clusters must be at least 2. Received: --num_clusters=1",
        ("--batch_size=2000",): "--batch_size=2000 exceeds the 1344 training images",
        ("--backbone=vgg",): "--backbone must be one of resnet8, resnet20, resnet56, resnet18, ",
        (
            "--backbone=alexnet",
        ): "images of 8 x 8 are too small for alexnet, which takes 63 pixels or more on each side: give a larger",
        (f"--workdir={tmp_path}/file",): f"--workdir={tmp_path}/file is a file",
        ("--epocs=3",): "Unknown command line flag 'epocs'. Did you mean: epochs",
        (f"--flagfile={tmp_path}/bad.cfg",): "Unknown command line flag 'num_cluster'",
        (f"--flagfile={tmp_path}/none.cfg",): f"{tmp_path}/none.cfg",
        ("--learning_rate=1e30", "--epochs=4", f"--workdir={tmp_path}/diverged"): "Lower the learning rate",
    }
    for message, door in zip(
        cases.values(), run_doors([[*SMALL, f"--workdir={tmp_path}/run", *args] for args in cases]), strict=True
    ):
        is_one_line(door, message)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--logical_cpus=2", "--xla"), "--xla works on one device only"),
        (("--logical_cpus=2", "--batch_size=63"), "--batch_size=63 cannot be shared equally by 2 devices"),
    ],
)
def test_what_two_devices_cannot_do_is_one_clear_line(tmp_path, args, message):
    process = run_door(*SMALL, *args, f"--workdir={tmp_path}/run")
    assert "Traceback" not in process.stdout
    is_one_line(process, message)


def test_a_missing_workdir_is_asked_for():
    process = run_door("--dataset=digits", "--num_clusters=10")
    assert process.returncode == 2
    assert "--workdir is missing" in process.stderr


@pytest.mark.slow
def test_two_devices_are_one(tmp_path):
    """Synchronised batch norm, same seed: losses of the first 20 steps, labels of the first relabelling.

    Rounding may tip an image that stands between two clusters; at the paper's batch and rate its weight is small.
    """
    runs = {}
    for devices in (1, 2):
        workdir = tmp_path / str(devices)
        process = run_door(
            *SMALL, "--sync_batch_norm", f"--logical_cpus={devices}", "--batch_size=256", "--learning_rate=0.05", "--epochs=4",
            "--num_relabellings=1", f"--workdir={workdir}", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        assert f"on {devices} device(s)" in process.stdout
        with np.load(workdir / "labels.npz") as labels:
            runs[devices] = [row["loss"] for row in rows(workdir) if row["kind"] == "train"], labels["training_labels"]
    # what is served needs one device, whatever it was trained on
    (exported,) = run_doors(
        [[f"--workdir={tmp_path}/2", f"--export_dir={tmp_path}/served", "--nowarm_up", "--check"]], "sela_tf.export"
    )
    assert exported.returncode == 0, exported.stderr
    assert len(runs[1][0]) == 20
    np.testing.assert_allclose(runs[1][0], runs[2][0], rtol=1e-4)
    assert (runs[1][1] == runs[2][1]).mean() >= 0.999


_FIT_ON_TWO_DEVICES = """
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import sela_tf
images = np.random.default_rng(0).normal(size=(96, 6)).astype(np.float32)
batches = tf.data.Dataset.from_tensor_slices((images, np.arange(96))).batch(16)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, sela_tf.MultiHead(2, 4)(keras.layers.Dense(8, activation="relu")(inputs)))
    labels = sela_tf.LabelTable(2, 4, 96, seed=0)
    model.compile("sgd", loss=sela_tf.SelfLabelLoss(labels))
callback = sela_tf.SelfLabelling(labels, batches, relabel_steps=[0, 8], verbose=1)
history = model.fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=[callback])
print(history.history["loss"], [np.bincount(head, minlength=4).tolist() for head in labels.labels])
assert np.isfinite(history.history["loss"]).all()
assert all(10 < size < 40 for head in labels.labels for size in np.bincount(head, minlength=4))
try:
    model.fit(tf.data.Dataset.from_tensor_slices((images, np.arange(96) + 9)).batch(16), shuffle=False, verbose=0, callbacks=[callback])
except ValueError as error:
    print(error)
else:
    raise SystemExit("an index outside was not noticed")
"""


@pytest.mark.slow
def test_the_callback_works_in_fit_on_two_devices():
    """With the table made in the strategy's scope, as users will."""
    done = subprocess.run(
        [sys.executable, "-c", _FIT_ON_TWO_DEVICES], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "relabel step 8 head 1" in done.stdout
    assert "example index" in done.stdout.splitlines()[-1]  # named, if the first replica met it; else its range


@pytest.mark.slow
def test_the_demo_learns(tmp_path):
    """configs/digits.cfg: kNN above the untrained network's by 2 points or at 98 %, AMI above it by .15."""
    process = run_door("--flagfile=configs/digits.cfg", f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    trained, untrained = results["trained"], results["untrained"]
    assert trained["knn"] >= min(untrained["knn"] + 0.02, 0.98)
    assert np.mean(trained["ami"]) >= np.mean(untrained["ami"]) + 0.15
    assert np.min(trained["ami"]) > results["chance"]["ami"][0] + 0.3
    assert_no_warnings(tmp_path / "run")


@pytest.mark.slow
def test_fashion_mnist_as_a_folder_without_classes_learns(tmp_path, fashion_mnist, rng):
    """A tenth of Fashion-MNIST written as gray and colour images of many sizes: labels that agree with classes never shown."""
    from sela_tf.data.sources import load_source
    from sela_tf.evaluation.clustering import cluster_metrics

    train = load_source(f"idx:{fashion_mnist}").train
    root = tmp_path / "images"
    root.mkdir()
    for i in range(4000):
        image = Image.fromarray(train.images[i, :, :, 0])
        side = int(rng.integers(24, 64))
        image = image.resize((side, side), Image.Resampling.BICUBIC).convert("RGB" if i % 2 else "L")
        image.save(root / f"{i:05d}.{('png', 'jpg', 'bmp')[i % 3]}")
    process = run_door(
        "--flagfile=configs/fashion_mnist.cfg",
        f"--dataset=folder:{root}",
        "--num_clusters=32",
        "--epochs=8",
        f"--workdir={tmp_path / 'run'}",
    )
    assert process.returncode == 0, process.stderr
    with np.load(tmp_path / "run" / "labels.npz") as labels:
        classes = train.classes[[int(name[:5]) for name in labels["names"]]]
        assert cluster_metrics(classes, labels["labels"][0]).ami > 0.3
    assert_no_warnings(tmp_path / "run")
