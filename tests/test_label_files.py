"""Labels out of files: known clusters (CSV), and all labels of another run (npz)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import match_names, read_known_labels, read_run_labels
from sela_tf.data.stores import Arrays
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_training_data
from sela_tf.training.initial_state import description_of, first_network
from sela_tf.training.known_labels import known_labels


def _images(names: tuple[str, ...] | None) -> ImageSet:
    return ImageSet(name="four", store=Arrays(np.zeros((4, 2, 2, 1), np.uint8)), channels=1, names=names)


class TestKnownLabels:
    def test_by_name_and_by_index(self, tmp_path):
        file = tmp_path / "known.csv"
        file.write_text("name,cluster\nb.png,1\n\nd/e.png, 0\n")
        assert read_known_labels(file, _images(("a.png", "b.png", "c.png", "d/e.png")), 2).labels.tolist() == [-1, 1, -1, 0]
        file.write_text("\ufeffindex;cluster\n2;1\n2;1\n")
        assert read_known_labels(file, _images(None), 2).labels.tolist() == [-1, -1, 1, -1]

    def test_an_index_is_the_sources_row_and_what_is_held_out_is_left_out(self, tmp_path):
        whole, file = _images(None), tmp_path / "known.csv"
        train, held_out = whole.take(np.array([0, 2, 3])), whole.take(np.array([1]))
        file.write_text("index,cluster\n0,1\n1,1\n2,0\n")
        known = read_known_labels(file, train, 2, others=[held_out])
        assert (known.labels.tolist(), known.num_left_out) == ([1, 0, -1], 1)
        # of a test split of its own the rows are others
        with pytest.raises(SourceError, match="line 3.*none of the 3 training images, nor of those left out, has the row '1'"):
            read_known_labels(file, train, 2, others=[whole])

    def test_labels_of_images_that_imbalance_leaves_out_do_not_count(self, tmp_path):
        rows = range(1797)
        (tmp_path / "known.csv").write_text("index,cluster\n" + "".join(f"{row},{row % 4}\n" for row in rows))
        config = SelaConfig(dataset="digits", num_clusters=4, imbalance="heavy", known_labels=str(tmp_path / "known.csv"))
        config, data = load_training_data(config)
        assert len(data.train) < 1000
        model = first_network(config, description_of(config, data), tf.distribute.get_strategy())
        np.testing.assert_array_equal(known_labels(config, data, model), np.tile(data.train.rows % 4, (config.num_heads, 1)))

    def test_held_out_names_are_left_out(self, tmp_path):
        whole, file = _images(("a.png", "b.png", "c.png", "d.png")), tmp_path / "known.csv"
        train, held_out = whole.take(np.array([3, 0])), whole.take(np.array([1, 2]))
        file.write_text("name,cluster\nc.png,1\nd.png,1\nb.png,\n")
        known = read_known_labels(file, train, 2, others=[held_out])
        assert (known.labels.tolist(), known.num_left_out) == ([1, -1], 1)
        file.write_text("name,cluster\nnew.png,1\n")
        with pytest.raises(SourceError, match="line 2.*has the name 'new.png'"):
            read_known_labels(file, train, 2, others=[held_out])

    def test_numbers_as_tools_write_them(self, tmp_path):
        file = tmp_path / "known.csv"
        file.write_text("index,cluster\n0.0,3.0\n1,-1\n2.000e+00,0\n3,\n1,-1.0\n")
        assert read_known_labels(file, _images(None), 4).labels.tolist() == [3, -1, 0, -1]

    def test_names_in_another_unicode_form(self, tmp_path):
        file = tmp_path / "known.csv"
        composed, split = "caf\u00e9.png", "cafe\u0301.png"
        file.write_text(f"name,cluster\n{split},1\n", encoding="utf-8")
        assert read_known_labels(file, _images(("a", "b", composed, "d")), 2).labels.tolist() == [-1, -1, 1, -1]
        # where both are there, each is itself
        assert read_known_labels(file, _images(("a", split, composed, "d")), 2).labels.tolist() == [-1, 1, -1, -1]
        assert match_names(["cafe\u0301.PNG", composed], ["x", split]) == [-1, 1]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "must be name,cluster or index,cluster"),
            ("a.png,1\n", "first line"),
            ("name,cluster\nz.png,1\n", "line 2.*'z.png'"),
            ("name,cluster\na.png,2\n", "line 2.*from 0 to 1, or .*Received: '2'"),
            ("name,cluster\na.png,cat\n", "line 2.*'cat'"),
            ("name,cluster\na.png,1\na.png,0\n", "line 3.*cluster 1 before. Received: 0"),
            ("name,cluster\na.png\n", "line 2.*2 columns"),
            ("name,cluster\na.png,0.5\n", "line 2.*from 0 to 1, or -1 or empty.*Received: '0.5'"),
            ("name,cluster\na.png,-2\n", "line 2.*'-2'"),
            ("name,cluster\na.png,1_0\n", "line 2.*'1_0'"),
            ("index,cluster\n4,0\n", "line 2.*none of the 4 training images.*row '4'"),
            ("index,cluster\nb,0\n", "line 2.*row 'b'"),
            ("index,cluster\n-1,0\n", "'-1'"),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path, text, message):
        file = tmp_path / "known.csv"
        file.write_text(text)
        with pytest.raises(SourceError, match=message):
            read_known_labels(file, _images(("a.png", "b.png", "c.png", "d.png")), 2)

    def test_a_file_that_is_not_there_and_names_that_are_not(self, tmp_path):
        with pytest.raises(SourceError, match="nothing.csv"):
            read_known_labels(tmp_path / "nothing.csv", _images(None), 2)
        (tmp_path / "known.csv").write_text("name,cluster\na.png,1\n")
        with pytest.raises(SourceError, match="begin .* with index,cluster"):
            read_known_labels(tmp_path / "known.csv", _images(None), 2)


def _noise(rng) -> ImageSet:
    return ImageSet(name="noise", channels=3, store=Arrays(rng.integers(0, 256, (23, 9, 7, 3), dtype=np.uint8)))


class TestRunLabels:
    """The file labels.npz of another run."""

    @staticmethod
    def write(path, labels, images, **more) -> None:
        potentials = np.zeros((len(labels), 4), np.float32)
        np.savez(path, labels=labels, potentials=potentials, data_fingerprint=np.array(images.fingerprint()), **more)

    def test_without_names_the_images_must_be_the_same(self, rng, tmp_path):
        images, labels = _noise(rng), rng.integers(0, 4, (2, 23))
        self.write(tmp_path / "labels.npz", labels, images)
        np.testing.assert_array_equal(read_run_labels(tmp_path / "labels.npz", images, 2, 4), labels)
        with pytest.raises(SourceError, match="labels 23 other images than the 22"):
            read_run_labels(tmp_path / "labels.npz", images.take(np.arange(22)), 2, 4)
        with pytest.raises(SourceError, match="give `num_heads=2` `num_clusters=4`"):
            read_run_labels(tmp_path / "labels.npz", images, 2, 5)

    def test_by_name_in_any_order(self, rng, tmp_path):
        images, labels = _noise(rng), rng.integers(0, 4, (2, 23))
        names = tuple(f"{i}.png" for i in range(23))
        images = dataclasses.replace(images, names=names)
        self.write(tmp_path / "labels.npz", labels, images, names=np.array(names))
        some = images.take(np.array([5, 3, 22]))
        np.testing.assert_array_equal(read_run_labels(tmp_path / "labels.npz", some, 2, 4), labels[:, [5, 3, 22]])
        renamed = ["cafe\u0301.png", *names[1:]]
        self.write(tmp_path / "renamed.npz", labels, images, names=np.array(renamed))
        composed = dataclasses.replace(images, names=("caf\u00e9.png", *names[1:]))
        np.testing.assert_array_equal(read_run_labels(tmp_path / "renamed.npz", composed, 2, 4), labels)
        other = dataclasses.replace(some, names=("5.png", "new.png", "22.png"))
        with pytest.raises(SourceError, match="lacks 1 of the 3 training images .* such as 'new.png'"):
            read_run_labels(tmp_path / "labels.npz", other, 2, 4)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
    def test_what_is_no_such_file(self, rng, tmp_path, content):
        (tmp_path / "labels.npz").write_bytes(content)
        with pytest.raises(SourceError, match="is not the labels.npz of a run"):
            read_run_labels(tmp_path / "labels.npz", _noise(rng), 2, 4)
        with pytest.raises(SourceError, match="is not the labels.npz of a run"):
            read_run_labels(tmp_path / "none.npz", _noise(rng), 2, 4)
