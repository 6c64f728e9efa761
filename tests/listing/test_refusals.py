"""Settings that are held to headers and counts, so that they are refused before any image is decoded."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import numpy as np
import pytest
from served import encoded, picture

from sela_tf.data.errors import SourceError
from sela_tf.data.record_writer import Record, shard_name, write_manifest, write_shard
from sela_tf.data.sources import load_source
from sela_tf.data.splits import hold_out
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_training_data


def _records(directory: pathlib.Path, rng) -> str:
    sizes = [(70, 90), (70, 90), (70, 90), (64, 64)]
    records = [Record(f"{i}.png", encoded(picture(rng, "RGB", sizes[i % 4]), "PNG"), *sizes[i % 4], 3) for i in range(16)]
    parts = {"train": records[:12], "eval": [records[12]._replace(name="e.png")]}
    shards = {split: [write_shard(str(directory), shard_name(split, 0, 1), part)] for split, part in parts.items()}
    write_manifest(str(directory), shards, {"channels": 3, "class_names": None})
    return f"records:{directory}"


class TestRefusedBeforeDecoding:
    """The settings are held to headers and counts, with the exact hold-out."""

    CASES = (
        ({"num_clusters": 13, "batch_size": 4}, "`num_clusters=13` exceeds the {} training images"),
        ({"batch_size": 13, "num_clusters": 4}, "`batch_size=13` exceeds the {} training images"),
        ({"rotation": True}, "`rotation` turns images, which must be square, not {}"),
        ({"backbone": "alexnet"}, "images of {} are too small for alexnet, which takes 63 pixels"),
        ({"backbone": "mlp"}, "`backbone=mlp` takes vectors"),
    )

    @pytest.mark.parametrize(("settings", "message"), CASES)
    def test_of_folders(self, folder, decoded, settings, message):
        (folder / "a" / "cut.jpg").unlink()
        (folder / "b" / "empty.png").unlink()
        config = SelaConfig(dataset=f"folder:{folder}", eval_fraction=0.3, **{"num_clusters": 4, "batch_size": 4, **settings})
        known = "16 x 20" if "{}" in message and "training images" not in message else None
        with pytest.raises(ValueError, match=message.format(known or r"(\d+)")) as refused:
            load_training_data(config)
        assert decoded == []
        if known is None and "{}" in message:
            train, _ = hold_out(load_source(config.dataset).train, 0.3)
            assert re.search(r"the (\d+) training", str(refused.value))[1] == str(len(train))

    def test_a_level_of_classes_that_is_not_there(self, folder, decoded):
        config = SelaConfig(dataset=f"folder:{folder}", num_clusters=4, batch_size=4, class_level="2")
        with pytest.raises(
            SourceError, match=r"`class_level=2`: \d+ images lie beside the directories of that level: a/00.png.*Choose another"
        ):
            load_training_data(config)
        assert decoded == []

    def test_of_many_sizes(self, folder, decoded, tmp_path, rng):
        settings = {"num_clusters": 4, "batch_size": 4, "image_size": 0}
        config = SelaConfig(dataset=f"folder:{folder}", cache_dir=str(tmp_path / "cache"), **settings)
        with pytest.raises(ConfigError, match="have many sizes"):
            load_training_data(config)
        assert decoded == []
        # the one of another size is damaged: without it there is one size
        config = dataclasses.replace(config, max_rejected=1.0)
        assert load_training_data(config)[1].size == (16, 20)
        decoded.clear()
        with pytest.raises(ConfigError, match="`num_clusters=2000` exceeds"):
            load_training_data(dataclasses.replace(config, num_clusters=2000))
        assert decoded == []

    def test_of_records(self, tmp_path, decoded, rng):
        dataset = _records(tmp_path / "records", rng)
        for settings, message in (*self.CASES[:2], ({"image_size": 0}, "have many sizes"), ({"backbone": "alexnet"}, "62 x 62")):
            config = SelaConfig(dataset=dataset, **{"num_clusters": 4, "batch_size": 4, "image_size": 62, **settings})
            with pytest.raises(ValueError, match=message.format(12)):
                load_training_data(config)
        assert decoded == []

    def test_of_images_that_would_be_made(self, monkeypatch):
        monkeypatch.setattr(np.random, "default_rng", None)
        with pytest.raises(ConfigError, match=r"`num_clusters=60000` exceeds the 45\d{3} training"):
            load_training_data(SelaConfig(dataset="synthetic:50000", num_clusters=60_000))

    def test_the_images_to_evaluate_on_are_not_decoded_either(self, folder, decoded):
        config = SelaConfig(dataset="digits", eval_dataset=f"folder:{folder}", num_clusters=1798, batch_size=4)
        with pytest.raises(ConfigError, match="exceeds the 1797 training images"):
            load_training_data(config)
        assert decoded == []

    def test_damaged_images_are_still_told_as_ever(self, folder):
        (folder / "a" / "cut.jpg").write_bytes(encoded(picture(np.random.default_rng(1), "RGB", (16, 20)), "PNG")[:300])
        config = SelaConfig(dataset=f"folder:{folder}", num_clusters=4, batch_size=4)
        with pytest.raises(
            SourceError,
            match=r"2 of 15 images cannot be read, `max_rejected=0`: a/cut.jpg .*leave them out with `max_rejected=0.134`",
        ):
            load_training_data(config)
