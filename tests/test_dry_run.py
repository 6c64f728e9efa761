"""The dry run: one step, one transport, and a forecast, of which nothing is kept."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from fixtures import ROOT, SMALL, run_door, run_doors

from sela_tf.data.splits import is_held_out
from sela_tf.settings.training import SelaConfig
from sela_tf.training import cost
from sela_tf.transport.assignment import plan_memory


@pytest.mark.slow
def test_recipes_dry_run():
    """At full size on images made on the fly: each network of the paper's recipes takes a step."""
    heads = {
        "imagenet_resnet50_3kx10": (10, 3000),
        "cifar10_128x10": (10, 128),  # as those of CIFAR-100 and SVHN but for the images
        "imagenet_alexnet_rot": (10, 3000),  # as imagenet_alexnet_transfer but for the labels
    }
    # the labels of a run that is not here
    doors = run_doors([[f"--flagfile=configs/{name}.cfg", "--dataset=synthetic", "--labels_from=", "--dry_run"] for name in heads])
    for (name, shape), door in zip(heads.items(), doors, strict=True):
        assert door.returncode == 0, door
        assert f"heads: {shape}" in door.stdout, name
        assert f"(ln K = {np.log(shape[1]):.4f})" in door.stdout, name


def checkout() -> set[str]:
    """The paths of the checkout, without those of the environment, of git and of Python's caches."""
    paths = set()
    for root, directories, files in os.walk(ROOT):
        directories[:] = [name for name in directories if name not in ("__pycache__", ".venv", ".git")]
        paths |= {os.path.join(root, name) for name in (*directories, *files)}
    return paths


def test_dry_run_writes_nothing(tmp_path):
    before = checkout()
    process = run_door(*SMALL, "--dry_run", f"--workdir={tmp_path / 'run'}")
    assert checkout() == before
    assert process.returncode == 0, process.stderr
    assert re.search(r"sela_resnet8: [\d,]+ parameters", process.stdout)
    assert "one step on 8 images: loss 2.77" in process.stdout
    assert re.search(
        r"one core makes [\d,]+ training views a second, and there are \d+; the step above wants [\d.e-]+\n", process.stdout
    )
    assert re.search(r"one transport of 4096 x 16: \d+ iterations", process.stdout)
    assert re.search(
        r"hours: training [\d.e-]+, label passes [\d.e-]+, transport [\d.e-]+, monitors [\d.e-]+, looking at images [\d.e-]+, "
        r"kNN [\d.e-]+, linear probes [\d.e-]+, agreement with classes [\d.e-]+(, report [\d.e-]+)?\n",
        process.stdout,
    )
    for phase in ("training", "relabelling", "a label pass", "evaluation"):
        assert f"  also, in {phase}: " in process.stdout
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
        "--eval_fraction=0.1",
        "--epochs=400",
        "--batch_size=256",
        "--num_relabellings=80",
        "--hidden_units=0",
    ]
    few, all_of_them = run_doors([[*settings, "--dataset=synthetic:6000", "--dry_run"], [*settings, "--dry_run"]])
    assert all_of_them.returncode == 0, all_of_them.stderr
    held_out = sum(is_held_out(str(row), 0.1) for row in range(1_281_167))
    assert f"{1_281_167 - held_out} training images, {held_out} held out" in all_of_them.stdout
    assert f"400 epochs of {(1_281_167 - held_out) // 256} steps" in all_of_them.stdout
    features = (1_281_167 - held_out) * 16 * 4 / 2**30
    assert f"also, in relabelling: features {features:.2f}, log-probabilities of a head (float32) {features * 100 / 16:.2f}" in (
        all_of_them.stdout
    )
    for door, images in ((few, 6000 - sum(is_held_out(str(row), 0.1) for row in range(6000))), (all_of_them, 1_281_167 - held_out)):
        (milliseconds,) = re.findall(r"looking at an image, as label passes do: ([\d.e+-]+) ms", door.stdout)
        (passes,) = re.findall(r"(\d+) relabellings", door.stdout)
        (hours,) = re.findall(r"label passes ([\d.e+-]+)", door.stdout)
        # Two digits are printed of the hours.
        assert float(hours) == pytest.approx(int(passes) * images * float(milliseconds) / 3.6e6, rel=0.06)


@pytest.mark.parametrize(
    ("few", "of_few", "many", "of_many", "each"),
    [(8, 1.0, 64, 8.0, 0.125), (8, 1.0, 64, 1.0, 1 / 64), (8, 1.5, 64, 1.0, 1 / 64), (8, 1.0, 8, 1.6, 0.2), (2, 0.5, 7, 1.5, 0.2)],
)
def test_what_is_measured_is_never_nearly_nothing(few, of_few, many, of_many, each):
    """A busy machine may take as long for few as for many."""
    assert cost.seconds_each(few, of_few, many, of_many) == pytest.approx(each)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
@pytest.mark.parametrize("gib", [4.0, 0.005, 1e-6])
def test_the_transport_is_tried_in_the_form_that_the_run_would_have(monkeypatch, tolerance, gib):
    """Log-probabilities in float32, in float16, or computed; stored rows take more of the memory where the tolerance is small."""
    config = SelaConfig(dataset="digits", num_clusters=16, transport_tolerance=tolerance)
    plan, tried = plan_memory(60_000, 16, gib * 2**30, tolerance=tolerance), []
    monkeypatch.setattr(cost, "assign_labels", lambda logits, *, memory_limit, **options: tried.append(memory_limit))
    cost.random_transport(config, plan, 4096, 8)
    assert {plan_memory(4096, 16, limit, tolerance=tolerance).form for limit in tried} == {plan.form}
