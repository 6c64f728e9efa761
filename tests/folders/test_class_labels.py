"""Class labels as files have them, and files of arrays whatever they are called."""

from __future__ import annotations

import numpy as np
import pytest

from sela_tf.data.classes import class_labels
from sela_tf.data.errors import SourceError
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.splits import match_classes

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
NUMBERS = np.array([2, 0, 1, 1, 0, 2])


class TestValues:
    @pytest.mark.parametrize(
        "values",
        [
            NUMBERS, NUMBERS[:, None], NUMBERS[None], NUMBERS.astype(np.float32), NUMBERS.astype(np.uint8), np.eye(3)[NUMBERS],
            np.eye(3, dtype=bool)[NUMBERS], np.eye(3, 5, dtype=np.int8)[NUMBERS],
        ],
    )  # fmt: skip
    def test_numbers_of_any_kind(self, values):
        found = class_labels(values, 6, key="classes", source="here")
        assert found.numbers.tolist() == NUMBERS.tolist()
        assert found.numbers.dtype == np.int64
        assert found.names is None
        is_one_hot = values.ndim == 2 and 1 not in values.shape
        assert bool(found.note) == is_one_hot

    @pytest.mark.parametrize("kind", [str, "S"])
    def test_words_are_the_names_of_classes(self, kind):
        found = class_labels(np.array(["cat", "ant", "bee", "bee", "ant", "cat"]).astype(kind), 6, key="classes", source="here")
        assert found.names == ("ant", "bee", "cat")
        assert found.numbers.tolist() == NUMBERS.tolist()

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.array([0, -1, 1, 1, -1, 2]), r"2 are negative or too large, such as -1 in row 1. Leave these images out"),
            (np.array([0, 2**63, 1, 1, 0, 2], np.uint64), r"1 are negative or too large, such as 9\.22337e\+18 in row 1"),
            (np.array([0, 0.5, 1, np.nan, 0, 2]), r"2 are no whole numbers, such as 0.5 in row 1. Round them"),
            (np.eye(3)[NUMBERS] * 0.9, r"row 0 of \[6, 3\] is not one-hot \(6 of 6\)"),
            (np.eye(6)[:, :3], r"row 3 of \[6, 3\] is not one-hot \(3 of 6\)"),
            (np.zeros(4, int), r"Received: int64 \[4\]. Give one for each image"),
            (np.zeros((6, 2, 2), int), r"\[6, 2, 2\]"),
            (np.zeros(6, complex), r"complex128 \[6\]. Save them as numbers or text"),
            (np.zeros(6, "M8[D]"), r"datetime64\[D\]"),
            (np.array([b"\xff"] * 6), "some are bytes that are no UTF-8"),
        ],
    )
    def test_others_are_refused_by_what_is_wrong(self, values, message):
        with pytest.raises(
            SourceError, match=r"here: classes must be 6 whole numbers from 0, or words: .*" + message + r".*`classes=none`"
        ):
            class_labels(values, 6, key="classes", source="here")


class TestFiles:
    @pytest.mark.parametrize(("kind", "images"), [("npz", IMAGES), ("features", IMAGES.reshape(6, -1) / 255)])
    def test_words_one_hot_and_what_is_not_asked_for(self, tmp_path, kind, images):
        key = "images" if kind == "npz" else "features"
        other = {"objects": np.array([{}, None], object)}
        np.savez(
            tmp_path / "words.npz",
            **{
                key: images,
                f"eval_{key}": images[:2],
                "classes": np.array([*"cabbac"]),
                "eval_classes": np.array([*"ca"]),
                **other,
            },
        )
        splits = load_source(f"{kind}:{tmp_path}/words.npz")
        train, held_out = match_classes(splits.train, splits.eval)
        assert train.class_names == held_out.class_names == ("a", "b", "c")
        assert held_out.classes.tolist() == [2, 0]
        assert splits.report[-1] == f"3 classes in {kind}:{tmp_path}/words.npz: a 2, b 2, c 2"
        np.savez(tmp_path / "hot.npz", **{key: images, "classes": np.eye(3)[NUMBERS]})
        splits = load_source(f"{kind}:{tmp_path}/hot.npz")
        assert splits.train.classes.tolist() == NUMBERS.tolist()
        assert splits.report[0] == "classes: one-hot rows are taken for 3 classes, by the place of the 1"
        # classes that will not do are refused, and may be left out
        for classes, message in (
            (np.array([-1] * 6), "negative"),
            (np.array([None] * 6, object), "holds Python objects, which are never unpickled"),
        ):
            np.savez(tmp_path / "bad.npz", **{key: images, "classes": classes})
            with pytest.raises(SourceError, match=message):
                load_source(f"{kind}:{tmp_path}/bad.npz")
            splits = load_source(f"{kind}:{tmp_path}/bad.npz", SourceOptions(use_classes=False))
            assert splits.train.classes is None
            assert splits.report == (f"no classes in {kind}:{tmp_path}/bad.npz: `classes=none` leaves them out",)

    @pytest.mark.parametrize("suffix", ["npy", "npz", "NPY", "NPZ", "bin"])
    def test_the_content_decides_and_not_the_name(self, tmp_path, suffix):
        vectors = IMAGES.reshape(6, -1).astype(np.float32)
        for save, options in ((np.save, {"arr": vectors}), (np.savez, {"features": vectors})):
            with (tmp_path / f"x.{suffix}").open("wb") as file:
                save(file, **options)
            np.testing.assert_array_equal(load_source(f"features:{tmp_path}/x.{suffix}").train.images, vectors)
        for save, options in ((np.save, {"arr": IMAGES}), (np.savez, {"images": IMAGES})):
            with (tmp_path / f"x.{suffix}").open("wb") as file:
                save(file, **options)
            np.testing.assert_array_equal(load_source(f"npz:{tmp_path}/x.{suffix}").train.images[..., 0], IMAGES)

    def test_vectors_are_not_taken_for_images(self, tmp_path):
        np.savez(tmp_path / "x.npz", features=np.zeros((3, 2)))
        with pytest.raises(
            SourceError,
            match=rf"no array 'images' or 'x_train': for vectors, `dataset=features:{tmp_path}/x.npz` \(it has features\)",
        ):
            load_source(f"npz:{tmp_path}/x.npz")


def test_two_names_of_the_same_array_are_refused(tmp_path):
    images = np.zeros((6, 4, 4), np.uint8)
    np.savez(tmp_path / "both.npz", images=images, x_train=images)
    with pytest.raises(SourceError, match="has both 'images' and 'x_train', which mean the same: leave one of them out"):
        load_source(f"npz:{tmp_path}/both.npz")
