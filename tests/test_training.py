"""Trainings of many kinds, as a user starts them: real processes on real images."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from doc_blocks import make_directory, run_make
from fixtures import SMALL, is_one_line, rows, run_door, run_doors
from PIL import Image

import sela_tf
from sela_tf.data.sources import load_source
from sela_tf.data.splits import hold_out
from sela_tf.transport.marginals import check_marginals


def assert_no_warnings(workdir: pathlib.Path) -> None:
    """A training that goes well is not complained of; but for waiting, which a busy machine may bring about."""
    assert [row for row in rows(workdir) if row["kind"] == "warning"] == []


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
    assert (wrong.returncode, misspelt.returncode) == (3, 2)
    assert "line 2 of --known_labels=" in wrong.stderr
    assert "none of the 1344 training images, nor of those left out, has the row '5000'" in wrong.stderr
    assert "`known_labels`: 7 labels are of images that are not trained on, and are left out" in with_known.stdout
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


@pytest.mark.slow
def test_one_class_and_few_images(tmp_path, rng):
    """Images of one class only are evaluated as if they had none; a dry run takes as many images as there are."""
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
    asked, process = run_doors([(*folder, "--image_size=0"), folder])
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
    is_one_line(other_images, "other images than the 1277 training images", status=3)
    is_one_line(other_heads, "has 2 heads of 16 clusters", status=3)
    is_one_line(no_labels, "is not the labels.npz of a run", status=3)
    is_one_line(no_classes, "--imbalance=light needs class labels", status=3)
    is_one_line(not_square, "which must be square, not 8 x 10: give --image_size")


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


@pytest.mark.slow
def test_the_demo_learns(tmp_path):
    """`make demo`, the run of configs/digits.cfg: kNN above the untrained network's by 2 points or at 98 %, AMI above it by .15."""
    make_directory(tmp_path, None)
    process = run_make("demo", tmp_path)
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "runs" / "digits" / "results.json").read_text())
    trained, untrained = results["trained"], results["untrained"]
    assert trained["knn"] >= min(untrained["knn"] + 0.02, 0.98)
    assert np.mean(trained["ami"]) >= np.mean(untrained["ami"]) + 0.15
    assert np.min(trained["ami"]) > results["chance"]["ami"][0] + 0.3
    assert_no_warnings(tmp_path / "runs" / "digits")


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
