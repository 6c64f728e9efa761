"""Probes after the stages of a network, and their door."""

from __future__ import annotations

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
from fixtures import SMALL, Door, is_one_line, run_door, run_doors
from judged import evaluated
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from sela_tf.cli import flags
from sela_tf.commands import probe as prober
from sela_tf.data.augment import Augmentation
from sela_tf.data.image_set import ImageSet
from sela_tf.data.sources import load_source
from sela_tf.data.splits import hold_out
from sela_tf.data.stores import Arrays
from sela_tf.evaluation import probes
from sela_tf.evaluation.linear_probe import linear_probe_accuracy
from sela_tf.evaluation.probes import ProbeSchedule, ProbeTask, logistic_probes, pooled, sgd_probes
from sela_tf.evaluation.protocol import evaluation_images
from sela_tf.models.build import build_model, stage_names
from sela_tf.reporting import probe_tables
from sela_tf.runs.network import load_run
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.optimizer import CoupledSGD


class TestPooling:
    @pytest.mark.parametrize(
        ("shape", "values"),
        [
            # the five maps of AlexNet at 224 x 224, as the paper's probes have them
            ((55, 55, 96), 9600), ((27, 27, 256), 9216), ((13, 13, 384), 9600), ((13, 13, 256), 9216),
            ((28, 28, 16), 14 * 14 * 16), ((7, 7, 64), 7 * 7 * 64), ((14, 10, 512), 4 * 4 * 512), ((2, 2, 20_000), 20_000), ((9600,), 9600), ((77,), 77),
        ],
    )  # fmt: skip
    def test_number_of_values(self, shape, values):
        assert pooled(keras.Input(shape), at_most=9600, name="probed").shape == (None, values)

    def test_alexnets_first_map_is_pooled_as_the_references(self, rng):
        """Windows of 6 from 3 outside on, at both ends."""
        images = rng.random((2, 55, 55, 96)).astype(np.float32)
        inputs = keras.Input((55, 55, 96))
        found = keras.Model(inputs, pooled(inputs, at_most=9600, name="probed"))(images).numpy().reshape(2, 10, 10, 96)
        padded = np.pad(images, [(0, 0), (3, 3), (3, 3), (0, 0)])
        for i, j in ((0, 0), (4, 7), (9, 9)):
            np.testing.assert_array_equal(found[:, i, j], padded[:, 6 * i : 6 * i + 6, 6 * j : 6 * j + 6].max(axis=(1, 2)))


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return hold_out(load_source("digits").train, 0.25)


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_model("resnet8", image_shape=(8, 8, 1), num_heads=1, num_clusters=4, width=4, mean=[78.0], variance=[9200.0])


def test_fitted_probes_are_scikit_learns_on_the_pooled_maps(digits):
    train, held_out = digits
    model = network()
    found = logistic_probes(ProbeTask(model, ["stage2", "embedding"], train, held_out, (8, 8), 32))
    cut = keras.Model(model.input, [model.get_layer("stage2").output, model.get_layer("embedding").output])
    (bank_map, bank), (queries_map, queries) = (cut(images.images.astype(np.float32)) for images in digits)
    # 4 x 4 x 8 to at most 32 values: windows of 2
    bank_map, queries_map = (
        np.asarray(values).reshape(-1, 2, 2, 2, 2, 8).max(axis=(2, 4)).reshape(-1, 32) for values in (bank_map, queries_map)
    )
    assert found["stage2"] == pytest.approx(
        linear_probe_accuracy(bank_map, train.classes, queries_map, held_out.classes), abs=0.003
    )
    assert found["embedding"] == pytest.approx(
        linear_probe_accuracy(np.asarray(bank), train.classes, np.asarray(queries), held_out.classes), abs=0.003
    )


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["alexnet", "applications:MobileNet"])
def test_layers_of_the_network_do_not_clash_with_the_probes(rng, backbone):
    """AlexNet has a layer "flatten"; Keras makes such names anew in every process."""
    keras.utils.clear_session()
    model = build_model(backbone, image_shape=(64, 64, 3), num_heads=2, num_clusters=4, width=0 if ":" in backbone else 8)
    classes = np.arange(40) % 2
    pixels = (rng.integers(0, 100, (40, 64, 64, 3)) + 150 * classes[:, None, None, None]).astype(np.uint8)
    images = ImageSet(name="bright", channels=3, store=Arrays(pixels), classes=classes)
    keras.utils.clear_session()
    assert evaluated(model, evaluation_images(images, images, (64, 64)), fill_statistics=True)["linear_probe"] > 0.4
    stages = stage_names(model)
    probed = ProbeTask(model, stages, images, images, (64, 64), 512)
    keras.utils.clear_session()
    assert set(logistic_probes(probed)) == set(stages)
    keras.utils.clear_session()
    schedule = ProbeSchedule(1, 20, Augmentation(1.0, 0, 0, 0, 0, 0, 0))
    assert set(sgd_probes(probed, optimizer=CoupledSGD(0.01), schedule=schedule)) == set(stages)


@pytest.mark.parametrize("ten_crop", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_trained_probes_come_near_the_fitted_ones_and_leave_the_network(digits, ten_crop):
    train, held_out = digits
    model = network()
    before = [np.asarray(variable).copy() for variable in model.variables]
    views = Augmentation(1.0 if not ten_crop else 0.7, 0, 0, 0, 0, 0, 0)
    stages = ["stage1", "stage2"]
    schedule = ProbeSchedule(8 if ten_crop else 25, 32, views, ten_crop)
    probed = ProbeTask(model, stages, train, held_out, (8, 8), 9600)
    found = sgd_probes(probed, optimizer=CoupledSGD(0.01), schedule=schedule)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), value)
    fitted = logistic_probes(probed)
    for stage in stages:
        assert found[stage] == pytest.approx(fitted[stage], abs=0.15 if ten_crop else 0.03), stage


class _Silent(keras.layers.Layer):
    """Says nothing in training."""

    def call(self, inputs, training=None):
        return 0.0 * inputs if training else inputs


def test_the_network_under_the_probes_is_in_inference_mode(digits):
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, _Silent(name="stage")(inputs))
    schedule = ProbeSchedule(5, 32, Augmentation(1.0, 0, 0, 0, 0, 0, 0))
    found = sgd_probes(ProbeTask(model, ["stage"], *digits, (8, 8), 9600), optimizer=CoupledSGD(0.01), schedule=schedule)
    assert found["stage"] > 0.9


@pytest.mark.slow
def test_ten_crops_are_averaged(digits, monkeypatch):
    """The score is that of the mean of what is believed of each crop, whether of all images at once or not."""
    train, held_out = digits
    seen = []
    monkeypatch.setattr(probes, "_SCORES_AT_ONCE", 3000)
    original = prober.BatchedInference.collect

    def watched(self, batches, num_examples, **options):
        outputs = original(self, batches, num_examples, **options)
        seen.append(outputs)
        return outputs

    monkeypatch.setattr(prober.BatchedInference, "collect", watched)
    schedule = ProbeSchedule(1, 64, Augmentation(0.7, 0.5, 0, 0, 0, 0, 0), ten_crop=True)
    found = sgd_probes(
        ProbeTask(network(), ["stage3"], train, held_out, (8, 8), 9600), optimizer=CoupledSGD(0.01), schedule=schedule
    )
    # ten classes
    assert [len(outputs) for outputs in seen] == [300] * 10 + [len(held_out) - 300] * 10
    seen = [np.concatenate(parts) for parts in zip(seen[:10], seen[10:], strict=True)]
    assert not np.array_equal(seen[0], seen[5])
    assert found["stage3"] == (np.mean(seen, axis=0).argmax(axis=1) == held_out.classes).mean()


def test_interval_is_students():
    # of 3 values: t = 4.3027
    assert probe_tables.interval([0.1, 0.2, 0.4]) == pytest.approx(4.302653 * np.std([0.1, 0.2, 0.4], ddof=1) / np.sqrt(3))
    assert np.isnan(probe_tables.interval([0.5]))


def test_runs_that_differ_in_more_than_the_seed_have_no_mean(tmp_path):
    for name, config in {
        "a": SelaConfig(dataset="digits", width=0),
        "b": SelaConfig(dataset="digits", seed=1, width=0),
        "c": SelaConfig(dataset="digits", seed=2, width=8),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags.cfg").write_text(flags.to_flagfile(config))
    a, b, c = (str(tmp_path / name) for name in "abc")
    prober.check_same_settings([a, b])
    with pytest.raises(ConfigError, match=f"`width` is 0 in {a} and 8 in {c}"):
        prober.check_same_settings([a, b, c])


def test_divergence_is_named(digits):
    schedule = ProbeSchedule(1, 64, Augmentation(1.0, 0, 0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="probes diverged: .* know nothing have 2.3. Lower `learning_rate`"):
        sgd_probes(ProbeTask(network(), ["stage3"], *digits, (8, 8), 9600), optimizer=CoupledSGD(1e30), schedule=schedule)


@pytest.fixture(scope="module")
def probed(finished, tmp_path_factory) -> tuple[pathlib.Path, dict[str, Door]]:
    """(the directory of runs that were probed, what the door said): every command in one process."""
    tmp_path = tmp_path_factory.mktemp("probed")
    for name in ("one", "two"):
        shutil.copytree(finished[0], tmp_path / name)
    flagfile = tmp_path / "two" / "flags.cfg"
    flagfile.write_text(flagfile.read_text().replace("--seed=0", "--seed=7"))
    # the first 300 digits in colour and in a frame, without a split of their own
    train = load_source("digits").train
    framed = np.pad(train.images[:300], [(0, 0), (2, 2), (1, 1), (0, 0)])
    np.savez(tmp_path / "other.npz", images=np.repeat(framed, 3, axis=-1), classes=train.classes[:300])
    np.savez(tmp_path / "nameless.npz", images=train.images[:300])
    one, both = f"--workdir={tmp_path}/one", f"--workdir={tmp_path}/one,{tmp_path}/two"
    shutil.copytree(finished[0], tmp_path / "wide")
    (tmp_path / "wide" / "flags.cfg").write_text(flagfile.read_text().replace("--width=8", "--width=4"))
    # the run's settings and those of too few images
    for name in ("heavy", "untrained", "files"):
        shutil.copytree(finished[0], tmp_path / name)
    flagfile = tmp_path / "heavy" / "flags.cfg"
    flagfile.write_text(flagfile.read_text().replace("--imbalance=none", "--imbalance=heavy"))
    np.savez(
        tmp_path / "few.npz",
        images=train.images[:14],
        classes=train.classes[:14] % 2,
        eval_images=train.images[:9],
        eval_classes=train.classes[:9] % 2,
    )
    for number in range(12):
        name = tmp_path / "images" / str(train.classes[number]) / f"{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(train.images[number, :, :, 0].astype(np.uint8)).save(name)
    name.write_bytes(name.read_bytes()[:40])
    files = [f"--workdir={tmp_path}/files", f"--eval_dataset=folder:{tmp_path}/images", "--stages=embedding"]
    heavy = [f"--workdir={tmp_path}/heavy", "--stages=embedding", "--knn=1"]
    commands = {
        "single": [one, "--untrained"],
        "several": [both, "--stages=embedding", "--knn=5", "--kmeans=10,40"],
        "sgd": [one, "--protocol=sgd", "--epochs=2", "--drop_epochs=1", "--ten_crop", "--stages=stage2,embedding"],
        "other": [one, f"--dataset=npz:{tmp_path}/other.npz", "--stages=embedding"],
        "nameless": [one, f"--dataset=npz:{tmp_path}/nameless.npz"],
        "stage": [one, "--stages=conv1"],
        "nothing": [f"--workdir={tmp_path}"],
        "unlike": [f"--workdir={tmp_path}/two,{tmp_path}/wide", "--knn=3"],
        "crowded": [one, "--kmeans=10,5000"],
        "heavy": heavy,
        "few": [*heavy, f"--dataset=npz:{tmp_path}/few.npz"],
        "untrained": [f"--workdir={tmp_path}/untrained", "--untrained", "--stages=embedding", "--knn=10"],
        "damaged": files,
        "left out": [*files, "--max_rejected=0.1"],
    }
    return tmp_path, dict(zip(commands, run_doors(list(commands.values()), "sela_tf.probe"), strict=True))


@pytest.mark.xdist_group("probes")
def test_damaged_files_of_another_source_are_left_out_where_that_is_asked_for(probed):
    tmp_path, said = probed
    assert said["damaged"].returncode == 3
    assert "1 of 12 images cannot be read, --max_rejected=0: 1/11.png" in said["damaged"].stderr
    assert said["left out"].returncode == 0, said["left out"].stderr
    assert json.loads((tmp_path / "files" / "probes.json").read_text())["num_held_out_images"] == 11
    assert "1/11.png" in (tmp_path / "files" / "probes_left_out.csv").read_text()


@pytest.mark.xdist_group("probes")
def test_through_the_door(finished, digits, probed):
    """One run, two runs, SGD; other images; and what cannot be."""
    tmp_path, said = probed
    single, several, sgd, other, nameless, stage, nothing, unlike, crowded = list(said.values())[:9]
    assert single.returncode == 0, single.stderr
    assert "| linear probe, stage3 " in single.stdout
    assert "so no interval over seeds" in single.stdout
    assert several.returncode == 0, several.stderr
    results = json.loads((finished[0] / "results.json").read_text())
    assert not (finished[0] / "probes.json").exists()
    two = json.loads((tmp_path / "two" / "probes.json").read_text())
    # the same weights: the door's figure is that at the end of training
    assert two["trained"]["linear_probe"]["embedding"] == pytest.approx(results["trained"]["linear_probe"], abs=0.003)
    assert set(two["trained"]["knn"]) == {"5"}
    assert "± 0.000" in several.stdout
    assert "| NMI, k-means on the embedding, 40 clusters |" in several.stdout
    model, (_, held_out) = load_run(tmp_path / "two"), digits
    cut = keras.Model(model.input, model.get_layer("embedding").output)
    embedding = np.asarray(cut(held_out.images.astype(np.float32)))
    for k, found in two["trained"]["kmeans"].items():
        clusters = KMeans(int(k), n_init=10, random_state=1).fit_predict(embedding)
        assert found["nmi"][0] == pytest.approx(normalized_mutual_info_score(held_out.classes, clusters), abs=0.05)
        assert found["clusters_used"] == [int(k)]
    assert sgd.returncode == 0, sgd.stderr
    assert "mean over ten crops" in " ".join(sgd.stdout.split())
    assert other.returncode == 0, other.stderr
    one_now = json.loads((tmp_path / "one" / "probes.json").read_text())
    assert one_now["num_held_out_images"] < 100
    is_one_line(nameless, "has no class labels, which probes need", door="sela_tf.probe")
    is_one_line(stage, "--stages=conv1: no such stage", door="sela_tf.probe")
    is_one_line(nothing, "holds no run", door="sela_tf.probe")
    is_one_line(crowded, "--kmeans=5000 exceeds the", door="sela_tf.probe")
    is_one_line(unlike, "differ in more than their seed: --width is 8", door="sela_tf.probe")
    assert json.loads((tmp_path / "two" / "probes.json").read_text()) == two


@pytest.mark.xdist_group("probes")
def test_unequal_classes_are_judged_by_all_images_and_few_images_will_do(probed):
    """Neither the run's --imbalance, nor its --num_clusters and --batch_size bind the images that probes are fitted to."""
    tmp_path, said = probed
    own, few = said["heavy"], said["few"]
    assert own.returncode == 0, own.stderr
    assert "among all 1344 training images" in " ".join(own.stdout.split())
    assert few.returncode == 0, few.stderr
    probes = json.loads((tmp_path / "heavy" / "probes.json").read_text())
    assert probes["config"]["num_clusters"] == 16
    assert probes["trained"]["knn"] == {"1": 1.0}


@pytest.mark.xdist_group("probes")
def test_untrained_is_the_network_before_its_first_step(finished, probed):
    """Settled, it is scored as at the end of training."""
    tmp_path, said = probed
    assert said["untrained"].returncode == 0, said["untrained"].stderr
    probes = json.loads((tmp_path / "untrained" / "probes.json").read_text())
    results = json.loads((finished[0] / "results.json").read_text())
    for column in ("trained", "untrained"):
        assert probes[column]["knn"]["10"] == pytest.approx(results[column]["knn"], abs=0.005)
        assert probes[column]["linear_probe"]["embedding"] == pytest.approx(results[column]["linear_probe"], abs=0.005)


@pytest.mark.slow
def test_a_rotated_run_and_its_probes_on_two_devices(tmp_path):
    way = [*SMALL, "--rotation", "--rotation_share=0.25", "--logical_cpus=2", "--sync_batch_norm", f"--workdir={tmp_path}/run"]
    trained = run_door(*way)
    assert (trained.returncode, trained.stderr) == (0, "")
    options = ["--protocol=sgd", "--epochs=3", "--drop_epochs=2", "--batch_size=32", "--flip_probability=0", "--crop_scale=0.5"]
    (probed,) = run_doors([[f"--workdir={tmp_path}/run", "--untrained", "--stages=stage2", *options]], "sela_tf.probe")
    assert (probed.returncode, probed.stderr) == (0, "")
    probes = json.loads((tmp_path / "run" / "probes.json").read_text())
    assert probes["trained"]["linear_probe"]["stage2"] > 0.8
