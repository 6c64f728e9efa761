"""The pixel rules of a run: made of its training images, kept with its network, and followed by every door."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from fixtures import rows as metric_rows
from fixtures import run_here
from PIL import Image
from pixel_files import laid, opened, oriented, png
from served import encoded, picture

import sela_tf
from sela_tf.callbacks.network_sample import NetworkSample
from sela_tf.cli import flags
from sela_tf.data.decoded_files import keep_decoded
from sela_tf.data.decoding import check_image, decode_image
from sela_tf.data.image_set import ImageSet
from sela_tf.data.listing import inspect_file, list_folder
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.pixel_rules import DEFAULT_RULES, OLD_RULES, PixelRules
from sela_tf.data.record_writer import Record, shard_name, write_manifest, write_shard
from sela_tf.data.rules_of_images import make_rules, saturation_in_words, visible_mean
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.stores import Arrays
from sela_tf.data.view_statistics import view_statistics
from sela_tf.runs.network import load_run, read_description
from sela_tf.serving.check import check_saved_model
from sela_tf.serving.saved_model import export_saved_model
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_data

SIDE = 8
SETTINGS = {
    "backbone": "resnet8", "width": 1, "num_heads": 1, "num_clusters": 2, "batch_size": 8, "image_size": SIDE, "eval_fraction": 0.2,
    "epochs": 1, "num_relabellings": 1, "report": False, "monitor_examples": 0, "flip_probability": 0.0,
}  # fmt: skip


def make_folder(root: pathlib.Path, rng) -> pathlib.Path:
    """Images with transparency, of 16 bits that use twelve, and a photo on its side."""
    for i in range(12):
        kind, data = (
            ("png", encoded(picture(rng, "RGBA", (SIDE, SIDE)), "png")),
            ("png", png(rng.integers(0, 4096, (SIDE, SIDE)), bits=16)),
            ("jpg", oriented(picture(rng, size=(12, SIDE)), "jpeg", 6)),
        )[i % 3]
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{i:02d}.{kind}").write_bytes(data)
    return root


@pytest.fixture
def folder(tmp_path, rng) -> pathlib.Path:
    return make_folder(tmp_path / "images", rng)


def clean_views(images: ImageSet) -> np.ndarray:
    """Clean views in the order of the set."""
    return np.concatenate([views for views, _ in inference_batches(images, size=(SIDE, SIDE), batch_size=4, in_order=True)])


def write_records(directory: pathlib.Path, files: dict[str, bytes]) -> None:
    infos = {name: check_image(data) for name, data in files.items()}
    records = [
        Record(name, data, infos[name].height, infos[name].width, infos[name].channels, largest=infos[name].largest)
        for name, data in files.items()
    ]
    shard = write_shard(str(directory), shard_name("train", 0, 1), records)
    write_manifest(str(directory), {"train": [shard]}, {"channels": 3, "class_names": None})


class TestRules:
    def test_what_a_listing_says_of_a_file(self, folder, tmp_path):
        files = list_folder(str(folder), ["00.png", "01.png", "02.jpg"], cache_dir=str(tmp_path / "cache"))
        again = list_folder(str(folder), ["00.png", "01.png", "02.jpg"], cache_dir=str(tmp_path / "cache"))
        assert files == again
        assert [file.info.largest > 0 for file in files] == [False, True, False]
        assert [file.info.orientation for file in files] == [1, 1, 6]
        assert (files[2].info.height, files[2].info.width) == (SIDE, 12)
        old = files[2].before_rules().info
        assert (old.height, old.width) == (12, SIDE)

    def test_images_that_were_read_wrongly_are_read_by_older_runs_alone(self, tmp_path, rng):
        (tmp_path / "x.gif").write_bytes(encoded(picture(rng).quantize(8), "gif", transparency=1))
        file = inspect_file(str(tmp_path), "x.gif")
        assert file.info is None
        assert file.is_foreign
        assert file.before_rules().info.kind == "gif"
        (tmp_path / "x.webp").write_bytes(encoded(picture(rng), "webp"))
        assert inspect_file(str(tmp_path), "x.webp").before_rules().info is None

    def test_the_largest_value_is_that_of_the_training_images(self, folder):
        images = load_source(f"folder:{folder}", SourceOptions(rules=None)).train
        largest = {name: check_image((folder / name).read_bytes()).largest for name in images.names}
        assert make_rules(images, "white") == PixelRules((255, 255, 255), max(largest.values()))
        some = images.take(np.flatnonzero([largest[name] < max(largest.values()) for name in images.names]))
        fewer = make_rules(some, "black")
        assert fewer == PixelRules((0, 0, 0), max(largest[name] for name in some.names))
        assert saturation_in_words(dataclasses.replace(images, rules=fewer)).startswith("1 images of ")
        assert saturation_in_words(dataclasses.replace(images, rules=make_rules(images, "white"))) == ""
        assert make_rules(images, "old") == OLD_RULES

    def test_the_mean_colour_leaves_transparent_parts_out(self, tmp_path, rng):
        values = rng.integers(0, 256, (4, 5, 6, 4), dtype=np.uint8)
        for i, image in enumerate(values):
            Image.fromarray(image).save(tmp_path / f"{i}.png")
        images = load_source(f"folder:{tmp_path}").train
        colours, opacity = values[..., :3].astype(float), values[..., 3:].astype(float)
        wanted = ((colours * opacity).sum((1, 2)) / opacity.sum((1, 2))).mean(axis=0)
        assert make_rules(images, "mean").background == tuple(np.rint(wanted))
        assert np.isnan(visible_mean(np.zeros((2, 2, 4), np.uint8), 1)).all()
        gray = np.full((1, 2, 2, 1), 1000, np.uint16)
        np.testing.assert_allclose(visible_mean(gray[0], 4000), [63.75] * 3)

    def test_views_that_are_alike_or_empty_are_counted(self, rng):
        pixels = rng.integers(0, 256, (9, SIDE, SIDE, 3), dtype=np.uint8)
        pixels[3] = pixels[5] = pixels[1]
        pixels[7:] = [[[[9, 8, 7]]], [[[1, 2, 3]]]]
        images = ImageSet(name="x", channels=3, store=Arrays(pixels), image_size=(SIDE, SIDE))
        found = view_statistics(images, size=(SIDE, SIDE))
        assert (found.num_views, found.num_same, found.num_constant) == (9, 3, 2)
        assert found.in_words() == (
            "of 9 training images, as the network sees them, 3 are each identical to another and 2 are of a single colour"
        )
        sample = NetworkSample(tf.data.Dataset.from_tensor_slices(pixels).batch(4), sela_tf.LabelTable(1, 2, 9))
        assert sample.same_images == 3 / 9


class TestSets:
    @pytest.mark.slow
    def test_folders_and_records_follow_the_rules(self, folder, tmp_path):
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        write_records(tmp_path / "records", files)
        rules = PixelRules((12, 200, 77), 4095)
        for source in (f"folder:{folder}", f"records:{tmp_path}/records"):
            made = make_rules(load_source(source, SourceOptions(rules=None)).train, "white")
            assert made.largest == max(check_image(data).largest for data in files.values())
            views = clean_views(load_source(source, SourceOptions(rules=rules)).train)
            np.testing.assert_array_equal(views[0], laid(opened(files["00.png"]), rules.background))
            wanted = np.floor(np.asarray(opened(files["01.png"])).astype(float) * 255 / 4095 + 0.5)
            np.testing.assert_array_equal(views[1], np.repeat(wanted[..., np.newaxis], 3, axis=-1))
            old = clean_views(load_source(source, SourceOptions(rules=OLD_RULES)).train)
            np.testing.assert_array_equal(old[0], np.asarray(opened(files["00.png"]))[..., :3])
            assert np.abs(views[2] - old[2]).max() > 0

    def test_records_of_one_size_are_decoded_by_them(self, tmp_path, rng):
        files = {f"{i}.png": encoded(picture(rng, "RGBA", (SIDE, SIDE)), "png") for i in range(3)}
        write_records(tmp_path / "records", files)
        for rules in (DEFAULT_RULES, PixelRules((0, 0, 0))):
            images = load_source(f"records:{tmp_path}/records", SourceOptions(rules=rules)).train.images
            np.testing.assert_array_equal(images, [laid(opened(data), rules.background) for data in files.values()])
        bounded = load_source(
            f"records:{tmp_path}/records", SourceOptions(rules=DEFAULT_RULES._replace(shorter_side=SIDE // 2))
        ).train
        assert bounded.image_size == (SIDE // 2, SIDE // 2)
        assert bounded.images.shape == (3, SIDE // 2, SIDE // 2, 3)

    def test_a_run_that_is_older_reads_the_files_that_it_read(self, tmp_path, rng):
        """A gif with transparency, which is named today, was read; a photo that is turned today was not turned."""
        gif = Image.fromarray(rng.integers(0, 4, (6, 6), dtype=np.uint8), "P")
        gif.putpalette(range(12))
        gif.save(tmp_path / "a.gif", transparency=0)
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(rng, "RGB", (8, 12)).save(tmp_path / "b.jpg", exif=exif)
        old = load_source(f"folder:{tmp_path}", SourceOptions(rules=OLD_RULES)).train
        assert old.names == ("a.gif", "b.jpg")
        (kept,) = keep_decoded([old], memory_limit=2**20)
        assert tuple(kept.store.image(tf.constant(1)).shape) == tuple(
            decode_image(tf.io.read_file(f"{tmp_path}/b.jpg"), 3, OLD_RULES).shape
        )
        new = load_source(f"folder:{tmp_path}", SourceOptions(rules=DEFAULT_RULES)).train
        assert new.names == ("b.jpg",)
        assert tuple(new.store.sizes[0]) == tuple(old.store.sizes[1][::-1])

    @pytest.mark.slow
    def test_a_run_makes_its_rules_of_its_training_images(self, folder):
        config = SelaConfig(dataset=f"folder:{folder}", crop_scale=0.25, **SETTINGS)
        data = load_data(config)
        # The smallest crop, a quarter of the area, still has as many pixels as the network sees.
        bound = 2 * max(data.size)
        assert data.train.rules == data.held_out.rules == make_rules(data.train, "white", shorter_side=bound)
        assert data.train.rules.shorter_side == bound
        assert load_data(dataclasses.replace(config, background="old")).train.rules == OLD_RULES
        assert load_data(config, PixelRules((1, 2, 3), 7)).held_out.rules == PixelRules((1, 2, 3), 7)


@pytest.mark.slow
def test_the_export_of_a_model_is_checked_with_the_files_themselves(folder, tmp_path):
    images = load_source(f"folder:{folder}", SourceOptions(rules=PixelRules((9, 9, 99), 3000))).train
    model = sela_tf.build_model("resnet8", image_shape=(SIDE, SIDE, 3), num_heads=1, num_clusters=2, width=1)
    export_saved_model(model, tmp_path / "1", pixel_rules=images.rules)
    assert check_saved_model(tmp_path / "1", model, images, seconds=0).num_images == 12


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("run")
    folder = make_folder(root / "images", np.random.default_rng(0))
    sela_tf.run(SelaConfig(dataset=f"folder:{folder}", background="mean", **SETTINGS), root / "run")
    return root / "run"


@pytest.mark.slow
class TestDoors:
    """A whole run, its labels and its export; then the same run as if it were older than the rules."""

    @staticmethod
    def embeddings(workdir: pathlib.Path, folder: pathlib.Path) -> np.ndarray:
        """Returns the embeddings that the label command writes for the images of the folder, in their order."""
        output = workdir.parent / "labels.parquet"
        command = [f"--workdir={workdir}", f"--dataset=folder:{folder}", f"--output={output}"]
        (door,) = run_here([command], "sela_tf.label")
        assert door.returncode == 0, door.stderr
        return np.stack(pq.read_table(output)["embedding"].to_numpy())

    def test_labelled_and_served_as_trained(self, run, tmp_path):
        folder = run.parent / "images"
        rules = read_description(run).pixel_rules
        assert rules.background not in (None, (255, 255, 255), (0, 0, 0))
        assert 4000 < rules.largest < 4096
        images = load_source(f"folder:{folder}", SourceOptions(rules=rules)).train
        embedding = self.embeddings(run, folder)
        model = load_run(run)
        wanted = tf.keras.Model(model.input, model.get_layer("embedding").output)(clean_views(images), training=False)
        np.testing.assert_allclose(embedding, wanted, atol=1e-4)
        (door,) = run_here([[f"--workdir={run}", f"--export_dir={tmp_path}", "--check", "--nowarm_up"]], "sela_tf.export")
        assert door.returncode == 0, door.stderr
        served = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
        found = served(image_bytes=tf.constant([path.read_bytes() for path in sorted(folder.iterdir())]))
        np.testing.assert_allclose(found["embedding"], embedding, atol=1e-4)

    def test_a_run_that_is_older_keeps_its_pixels(self, run, tmp_path):
        folder, old = run.parent / "images", tmp_path / "old"
        shutil.copytree(run, old)
        described = json.loads((old / "network.json").read_text())
        del described["network"]["pixel_rules"]
        for name in ("sha256", "labels_sha256", "settings", "superseded"):
            del described[name]
        (old / "network.json").write_text(json.dumps(described))
        for file in old.glob("checkpoints/*/meta.json"):
            newer = ("meta_sha256", "settings", "network", "digests", "held_out_fingerprint", "num_held_out")
            said = {name: value for name, value in json.loads(file.read_text()).items() if name not in newer}
            file.write_text(json.dumps(said))
        lines = (old / "flags.cfg").read_text().splitlines()
        (old / "flags.cfg").write_text("\n".join(line for line in lines if not line.startswith(("#", "--background"))) + "\n")
        assert read_description(old).pixel_rules == OLD_RULES
        images = load_source(f"folder:{folder}", SourceOptions(rules=OLD_RULES)).train
        model = load_run(old)
        wanted = tf.keras.Model(model.input, model.get_layer("embedding").output)(clean_views(images), training=False)
        np.testing.assert_allclose(self.embeddings(old, folder), wanted, atol=1e-4)
        (door,) = run_here([[f"--workdir={old}", f"--export_dir={tmp_path}/served", "--check", "--nowarm_up"]], "sela_tf.export")
        assert door.returncode == 0, door.stderr
        config = dataclasses.replace(flags.from_flagfile(run / "flags.cfg"), background="white", epochs=2)
        sela_tf.run(config, old)
        assert "--background=old" in (old / "flags.cfg").read_text()
        assert read_description(old).pixel_rules == OLD_RULES
        assert metric_rows(old)[-1]["step"] > 1
