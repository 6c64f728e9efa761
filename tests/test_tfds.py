"""Data sets that TFDS has prepared."""

from __future__ import annotations

import numpy as np
import pytest

from sela_tf.data.errors import SourceError
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.sources.tfds import TfdsSource
from sela_tf.data.splits import is_held_out
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_training_data


class TestTfds:
    @pytest.mark.parametrize("name", ["shapes", "shapes:1.2.0", "shapes:1.*.*"])
    def test_prepared_data_is_read(self, data_dir, name):
        splits = load_source(name, SourceOptions(data_dir=str(data_dir)))
        assert splits.train.images.shape == (30, 6, 6, 3)
        assert splits.train.class_names == ("a", "b")
        np.testing.assert_array_equal(splits.train.images[:, 0, 0, 0] % 2, splits.train.classes)
        assert len(splits.eval) == 10
        assert splits.train.fingerprint() == load_source(name, SourceOptions(data_dir=str(data_dir))).train.fingerprint()

    def test_does_not_wait_for_the_thread_that_tunes(self, data_dir, passes):
        load_source("shapes", SourceOptions(data_dir=str(data_dir)))
        assert [options.autotune.enabled for options in passes] == [False] * 2

    def test_settings_are_held_to_its_counts(self, data_dir, monkeypatch):
        """A data set without a test split is held to the exact hold-out; sizes that its features do not tell are nobody's fault."""
        monkeypatch.setattr(TfdsSource, "examples", None)
        few = {"num_clusters": 4, "batch_size": 2, "data_dir": str(data_dir)}
        with pytest.raises(ConfigError, match="`num_clusters=31` exceeds the 30 training images"):
            load_training_data(SelaConfig(dataset="shapes", **{**few, "num_clusters": 31}))
        kept = sum(not is_held_out(str(row), 0.4) for row in range(3))
        assert 0 < kept < 3
        with pytest.raises(ConfigError, match=f"`num_clusters=3` exceeds the {kept} training images"):
            load_training_data(SelaConfig(dataset="many", eval_fraction=0.4, **{**few, "num_clusters": 3}))
        with pytest.raises(TypeError):  # nothing is wrong, so that examples are read
            load_training_data(SelaConfig(dataset="shapes", **few))

    def test_many_sizes_and_limits(self, data_dir):
        with pytest.raises(SourceError, match="many sizes.*records:DIR"):
            load_source("many", SourceOptions(data_dir=str(data_dir)))
        with pytest.raises(SourceError, match="`memory_limit="):
            load_source("shapes", SourceOptions(data_dir=str(data_dir), memory_limit=500))

    def test_unknown_and_unprepared(self, tmp_path):
        with pytest.raises(SourceError, match="`dataset=no_such_set`: unknown"):
            load_source("no_such_set", SourceOptions(data_dir=str(tmp_path)))
        with pytest.raises(SourceError, match="`dataset=cifar10`: TFDS has not prepared it"):
            load_source("cifar10", SourceOptions(data_dir=str(tmp_path)))

    def test_a_file_belongs_into_a_directory(self, tmp_path, monkeypatch):
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "cat.png").touch()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            SourceError, match="`dataset=images/cat.png`: one file. Name the directory that holds images, folder:images"
        ):
            load_source("images/cat.png")
