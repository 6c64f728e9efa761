"""The layout of folders: splits and classes by the names of images alone."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from sela_tf.data.errors import SourceError
from sela_tf.data.sources.layout import folder_layout, split_role
from sela_tf.data.sources.old_layout import old_layout


def tree(*directories: str, count: int = 2) -> list[str]:
    """Names of images in directories, in order."""
    return sorted(
        (f"{each}/{i}.png" if each else f"{i}.png" for each in directories for i in range(count)), key=lambda n: n.split("/")
    )


def found(names: list[str], class_level: str = "auto"):
    """The parts that images are in, and their classes by name."""
    layout = folder_layout(names, class_level, source="here")
    parts = {"train": {names[i] for i in layout.train}, "eval": {names[i] for i in layout.held_out}}
    classes = (
        {}
        if layout.classes is None
        else {name: layout.class_names[i] for name, i in zip(names, layout.classes, strict=True) if i >= 0}
    )
    return parts, classes, layout


class TestSplits:
    @pytest.mark.parametrize(
        ("train", "held_out"),
        [
            ("train", "test"), ("Training", "Testing"), ("TRAIN", "Valid"), ("train_images", "val_images"), ("train-set", "test-set"),
            ("trainset", "testset"), ("train2017", "val2017"), ("tr", "te"), ("training data", "evaluation"), ("train", "dev"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("above", ["", "archive/images/"])
    def test_under_many_names_and_below_other_directories(self, train, held_out, above):
        names = tree(f"{above}{train}/a", f"{above}{train}/b", f"{above}{held_out}/a", f"{above}{held_out}/b")
        parts, classes, layout = found(names)
        assert parts["train"] == {name for name in names if f"{train}/" in name}
        assert parts["eval"] == {name for name in names if f"{held_out}/" in name}
        assert classes == {name: name.split("/")[-2] for name in names}
        assert layout.report == ()

    @pytest.mark.parametrize("name", ["cats", "retrain", "trainer", "test_tube", "images", "valley", "trains", "t"])
    def test_other_names_are_none(self, name):
        assert split_role(name) is None

    def test_languages_are_classes(self):
        _, classes, _ = found(tree("de", "te", "tr"))
        assert set(classes.values()) == {"de", "te", "tr"}

    def test_a_directory_train_may_be_a_class_and_that_is_told(self):
        parts, classes, layout = found(tree("bus", "train"))
        assert parts["eval"] == set()
        assert set(classes.values()) == {"bus", "train"}
        assert layout.report == (
            "the directory 'train' is taken for a class: no directory beside it is for evaluation (test, val, …)",
        )

    def test_an_unlabelled_test_beside_labelled_others(self):
        names = tree("train/a", "train/b", "val/a", "val/b", "test")
        parts, classes, layout = found(names)
        assert parts["eval"] == set(tree("val/a", "val/b"))
        assert set(classes.values()) == {"a", "b"}
        assert layout.report[0] == "evaluated on the 4 images of val: those of test lie in no directories of classes"
        assert layout.report[1] == "left out, 2 images outside the splits, in test"
        # an inner directory that is no class of the training images is no label either, and a labelled test is preferred
        assert found(tree("train/a", "train/b", "val/a", "val/b", "test/unknown"))[0]["eval"] == set(tree("val/a", "val/b"))
        assert found(tree("train/a", "train/b", "val/a", "val/b", "test/a"))[0]["eval"] == set(tree("test/a"))
        # without any other the test is taken, and there are no classes
        parts, classes, layout = found(tree("train/a", "train/b", "test"))
        assert parts["eval"] == set(tree("test"))
        assert classes == {}
        assert "lie in no directories of classes" in layout.without_classes

    def test_what_is_beside_the_splits_is_told(self):
        names = tree("train/a", "train/b", "test/a", "test/b", "other", "")
        parts, _, layout = found(names)
        assert parts["train"] | parts["eval"] == {name for name in names if name.startswith(("train/", "test/"))}
        assert layout.report == ("left out, 4 images outside the splits, in the folder itself, other",)


class TestClasses:
    def test_directories_below_a_class_do_not_count(self):
        _, classes, _ = found(tree("healthy/patient0", "healthy/patient1", "sick/patient0", "sick"))
        assert {name: classes[name] for name in classes} == {name: name.split("/")[0] for name in classes}
        assert len(classes) == 8

    def test_an_inner_directory_of_the_same_name(self):
        _, classes, _ = found(tree("cats/cats", "dogs"))
        assert set(classes.values()) == {"cats", "dogs"}
        # as some archives have it, in both splits
        _, classes, _ = found(tree("seg_train/seg_train/sea", "seg_train/seg_train/city"))
        assert set(classes.values()) == {"city", "sea"}
        _, classes, _ = found(tree("train/train/a", "train/train/b", "test/test/a", "test/test/b"))
        assert set(classes.values()) == {"a", "b"}

    def test_classes_of_one_name_in_different_places_are_told_apart(self):
        names = tree("photo/dog", "photo/cat", "sketch/dog", "sketch/bird")
        for level in ("2", "parent"):
            _, classes, layout = found(names, level)
            assert layout.class_names == ("bird", "cat", "photo/dog", "sketch/dog")
            assert classes["photo/dog/0.png"] == "photo/dog"
        assert set(found(names)[1].values()) == {"photo", "sketch"}
        # those of the splits are the same classes
        both = [f"{split}/{name}" for split in ("test", "train") for name in names]
        _, classes, layout = found(both, "2")
        assert layout.class_names == ("bird", "cat", "photo/dog", "sketch/dog")
        assert classes["test/photo/dog/0.png"] == classes["train/photo/dog/1.png"]

    def test_reasons_for_none(self):
        assert found(tree(""))[2].without_classes == "no image lies in a directory"
        assert found(tree("a/b"))[2].without_classes == "all images lie in one directory, a"
        assert (
            found([*tree("a", "b"), "x\n.png"])[2].without_classes
            == r"1 images lie beside the directories that could be classes: x\n.png"
        )
        with pytest.raises(SourceError, match="here: `class_level=2`: 2 images lie beside the directories of that level: a/0.png"):
            found(tree("a", "b/c"), "2")

    @hypothesis.given(
        st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), min_size=2, max_size=6), st.integers(0, 5)
    )
    @hypothesis.settings(deadline=None, max_examples=60)
    def test_the_level_is_the_first_that_tells_images_apart(self, directories, deeper):
        names = tree(*sorted(directories))
        _, classes, layout = found(names)
        parts = [name.split("/")[:-1] for name in names]
        level = next((i for i in range(3) if len({tuple(part[: i + 1]) for part in parts if len(part) > i}) > 1), None)
        if level is None or any(len(part) <= level for part in parts):
            assert layout.classes is None
            return
        assert classes == {name: part[level] for name, part in zip(names, parts, strict=True)}
        # directories below a class change nothing
        changed = [name.replace("/0.png", f"/more/{deeper}/0.png") for name in names]
        assert {name.replace(f"/more/{deeper}", ""): value for name, value in found(sorted(changed))[1].items()} == classes


class TestOldRules:
    """Runs that exist took splits and classes so."""

    def test_classes_of_one_name_were_one(self):
        layout = old_layout(tree("photo/dog", "photo/cat", "sketch/dog"))
        assert layout.class_names == ("cat", "dog")
        assert layout.classes.tolist() == [0, 0, 1, 1, 1, 1]

    def test_splits_had_few_names(self):
        names = tree("Train/a", "Train/b", "Test/a", "Test/b")
        layout = old_layout(names)
        assert [names[i] for i in layout.held_out] == [name for name in names if name.startswith("Test/")]
        np.testing.assert_array_equal(layout.classes, [0, 0, 1, 1] * 2)
        assert old_layout(tree("train_images/a", "test_images/a")).held_out == []
        assert old_layout(tree("train/a", "test/a", "other")).report == ("left out, 2 images outside the splits, in other",)
        assert old_layout(tree("train", "bus")).class_names == ("bus", "train")
        assert old_layout([*tree("a", "b"), "x.png"]).classes is None
