"""A folder on a URL is what it is on a disk."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf

from sela_tf.commands import label as labeller
from sela_tf.data.augment import Augmentation
from sela_tf.data.folder_contents import walk
from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import read_known_labels, read_run_labels
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.sources import SourceOptions, load_source, outline_source
from sela_tf.data.splits import hold_out
from sela_tf.data.stores import Files
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training import run as trainer
from sela_tf.training.images import load_training_data


@pytest.fixture
def url(folder) -> str:
    """The folder on a file system that the operating system does not know, without what is damaged."""
    root = f"ram://{folder.name}-{os.getpid()}"
    for name in ("a/cut.jpg", "b/empty.png"):
        (folder / name).unlink()
    for name in walk(str(folder), name="f"):
        tf.io.gfile.makedirs(os.path.dirname(f"{root}/{name}"))
        tf.io.gfile.copy(str(folder / name), f"{root}/{name}", overwrite=True)
    yield root
    tf.io.gfile.rmtree(root)


class TestUrl:
    """A folder on a URL is what it is on a disk."""

    def test_views_fingerprint_and_hold_out(self, url, folder, tmp_path):
        local, remote = (load_source(f"folder:{root}", SourceOptions(cache_dir=str(tmp_path))).train for root in (folder, url))
        assert remote.fingerprint() == local.fingerprint()
        sets = [hold_out(images, 0.3) for images in (local, remote)]
        assert sets[0][1].names == sets[1][1].names
        crops = Augmentation(0.3, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        views = [[*inference_batches(train, size=(12, 12), batch_size=5, augmentation=crops)] for train, _ in sets]
        for (image, index), (same, same_index) in zip(*views, strict=True):
            np.testing.assert_array_equal(image, same)
            np.testing.assert_array_equal(index, same_index)
        with tf.io.gfile.GFile(f"{url}/a/00.png", "ab") as file:
            file.write(b"more")
        other = load_source(f"folder:{url}", SourceOptions(cache_dir=str(tmp_path))).train
        assert other.fingerprint() != local.fingerprint()

    def test_label_files(self, url, tmp_path):
        train, held_out = hold_out(load_source(f"folder:{url}").train, 0.3)
        (tmp_path / "known.csv").write_text(f"name,cluster\n{train.names[2]},1\n{held_out.names[0]},0\n")
        known = read_known_labels(tmp_path / "known.csv", train, 2, others=[held_out])
        assert known.labels.tolist() == [-1, -1, 1, *[-1] * (len(train) - 3)]
        assert known.num_left_out == 1
        labels = np.arange(2 * len(train)).reshape(2, -1) % 4
        np.savez(
            tmp_path / "labels.npz", labels=labels, potentials=np.zeros((2, 4)), data_fingerprint=np.array(train.fingerprint()),
            names=np.array(train.names),
        )  # fmt: skip
        np.testing.assert_array_equal(read_run_labels(tmp_path / "labels.npz", train, 2, 4), labels)

    def test_settings_are_held_to_it(self, url, decoded):
        config = SelaConfig(dataset=f"folder:{url}", num_clusters=4, batch_size=4, image_size=16, eval_fraction=0.3).absolute()
        assert config.dataset == f"folder:{url}"
        with pytest.raises(ConfigError, match="`num_clusters=2000` exceeds"):
            load_training_data(dataclasses.replace(config, num_clusters=2000))
        assert decoded == []
        _, data = load_training_data(config)
        assert data.size == (16, 16)
        assert len(data.train) + len(data.held_out) == 12

    @pytest.mark.slow
    def test_a_whole_run(self, url, tmp_path):
        config = SelaConfig(
            dataset=f"folder:{url}", backbone="resnet8", width=1, num_heads=1, num_clusters=2, batch_size=4, image_size=16,
            eval_fraction=0.3, epochs=2, num_relabellings=2, report=False,
        )  # fmt: skip
        results = trainer.run(config, tmp_path / "run")
        assert results["data"]["num_training_images"] + results["data"]["num_held_out_images"] == 12
        (tmp_path / "labels").mkdir()
        labeller.label_run(LabelConfig(workdir=str(tmp_path / "run"), output=str(tmp_path / "labels" / "labels.csv")))
        assert len((tmp_path / "labels" / "labels.csv").read_text().splitlines()) == 13


def test_files_without_names_have_no_fingerprint(tmp_path):
    """The same images elsewhere would be others by their paths."""
    with pytest.raises(ValueError, match="zip"):
        ImageSet(name="x", channels=3, store=Files((str(tmp_path),), digests=("0" * 64,))).fingerprint()


def test_files_that_were_not_read_have_no_fingerprint(folder):
    outline = outline_source(f"folder:{folder}").splits.train
    for images in (outline, dataclasses.replace(outline, store=Files(outline.store.paths))):
        with pytest.raises(ValueError, match="13 files were listed and not read: load them"):
            images.fingerprint()
