"""The layout of a folder, by the names of its images alone: which are trained on, which are held out, and the class of each."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sela_tf.data.errors import NAMES_SHOWN, SourceError
from sela_tf.data.left_out import shown_name

_ROLE_NAMES = {
    "train": ("train", "training", "trainset", "traindata", "trn", "tr"),
    "test": ("test", "testing", "testset", "testdata", "eval", "evaluation", "tst", "te"),
    "val": ("val", "valid", "validation", "valset", "valdata", "dev", "devset"),
}
"""Names of directories that are splits, in lower case."""
_AMBIGUOUS = ("trn", "tr", "tst", "te", "dev")
"""Names that are splits only where all directories beside them are: tr and te are languages, too."""
_FILLERS = ("set", "data", "dataset", "split", "images", "image", "imgs", "img")
"""Words that the name of a split may have in addition, as in `train_images`."""
_YEAR = re.compile(r"(?<=[a-z])(19|20)\d\d$")

Directories = tuple[str, ...]
"""The directories of an image, from the top of the folder down."""


class ClassLevelError(SourceError):
    """A level of classes that some images do not have."""


class Layout(NamedTuple):
    """The splits and classes of a folder of N images."""

    train: list[int]
    """Places of the images to train on."""
    held_out: list[int]
    """Places of the images of the split to evaluate on; empty if there is none."""
    classes: np.ndarray | None
    """Class labels, int64 `[N]`, -1 for images of neither split; None if there are no classes."""
    class_names: tuple[str, ...] | None
    """Names of the classes, by number; None if there are no classes."""
    without_classes: str
    """The reason why there are no classes; "" if there are."""
    report: tuple[str, ...]
    """Lines for the user."""


def folder_layout(names: Sequence[str], class_level: str, *, source: str) -> Layout:
    """Finds the splits and classes of a folder.

    The splits are the directories with names such as train, test or val at the first level that has two or more directories. A split to
    evaluate on is taken only beside one to train on; test is preferred to val, unless only val has classes.

    Args:
        names: Paths of the images relative to the folder, with forward slashes.
        class_level: The level of directories that are the classes. "auto" is the first level below the split that has two or more of them;
            a number N counts the levels below the split from 1; "parent" is the directory that holds the image.
        source: The name of the data set, for messages.

    Raises:
        ClassLevelError: A training image has fewer directories than `class_level`.
    """
    directories = [tuple(name.split("/")[:-1]) for name in names]
    depth = _common_depth(directories)
    tops = [each[depth] if len(each) > depth else "" for each in directories]
    roles, report = _roles(set(tops))
    by_role = {role: [i for i, top in enumerate(tops) if roles.get(top) == role] for role in _ROLE_NAMES}
    train, held_out = by_role["train"] or list(range(len(names))), list[int]()
    if by_role["train"]:
        directories = [each[depth + 1 :] if top in roles else each for each, top in zip(directories, tops, strict=True)]
    finder = _ClassFinder([directories[i] for i in train], [names[i] for i in train], class_level, source)
    candidates = [by_role[role] for role in ("test", "val") if by_role[role]]
    labelled = [places for places in candidates if finder.are_labelled([directories[i] for i in places])]
    if candidates:
        held_out = (labelled or candidates)[0]
        if labelled and held_out is not candidates[0]:
            report.append(
                f"evaluated on the {len(held_out)} images of {_shown({tops[i] for i in held_out})}: those of "
                f"{_shown({tops[i] for i in candidates[0]})} lie in no directories of classes"
            )
    left_out = len(names) - len(train) - len(held_out)
    if left_out:
        used = {tops[i] for i in (*train, *held_out)}
        report.append(f"left out, {left_out} images outside the splits, in {_shown(set(tops) - used)}")
    classes, class_names, reason = finder.classes(len(names), train, held_out, directories)
    return Layout(train, held_out, classes, class_names, reason, tuple(report))


def split_role(name: str) -> str | None:
    """Returns "train", "test" or "val" for a directory whose name says so, in any case; None for any other."""
    words = [_YEAR.sub("", word) for word in re.split(r"[\W_]+", name.lower()) if word]
    words = [word for word in words if word not in _FILLERS]
    return next((role for role, known in _ROLE_NAMES.items() if len(words) == 1 and words[0] in known), None)


def _roles(tops: set[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the role of each directory that is a split, and lines for the user; no directory is one unless one is to train on.

    A directory for training beside others, none of them for evaluation, is a class.
    """
    roles = {top: role for top in tops if (role := split_role(top)) is not None}
    if set(roles) != tops:
        roles = {top: role for top, role in roles.items() if top.lower() not in _AMBIGUOUS}
    training = sorted(top for top, role in roles.items() if role == "train")
    if training and (set(roles) == tops or set(roles.values()) != {"train"}):
        return roles, []
    lines = [
        f"the directory {top!r} is taken for a class: no directory beside it is for evaluation (test, val, …)" for top in training
    ]
    return {}, lines


class _ClassFinder:
    """The finder of classes, which the directories of the training images decide on.

    Args:
        directories: Directories of the training images below their split.
        names: Names of the training images, for messages.
        class_level: "auto", "parent", or a number from 1.
        source: The name of the data set, for messages.

    Raises:
        ClassLevelError: A training image has fewer directories than `class_level`.
    """

    def __init__(self, directories: Sequence[Directories], names: Sequence[str], class_level: str, source: str):
        self._reason = ""
        self._is_auto = class_level == "auto"
        # The level from 0; None for the directory that holds the image.
        self._level = int(class_level) - 1 if class_level.isdecimal() else _first_level(directories) if self._is_auto else None
        beside = [name for name, each in zip(names, directories, strict=True) if len(each) <= (self._level or 0)]
        some = f"{len(beside)} images lie beside {{}}: {', '.join(map(shown_name, beside[:NAMES_SHOWN]))}"
        if beside and len(beside) < len(names):
            self._reason = some.format("the directories that could be classes")
        elif beside:
            self._reason = "no image lies in a directory"
        if beside and class_level.isdecimal():
            raise ClassLevelError(
                f"{source}: `class_level={class_level}`: {some.format('the directories of that level')}. Choose another level"
            )
        self._known = set() if self._reason else set(self._keys(directories))

    def _keys(self, directories: Sequence[Directories]) -> list[str]:
        """Returns what tells the classes of one split apart: the path of the directory, without what all images have in common."""
        if self._is_auto:
            return [each[self._level or 0] for each in directories]
        common = _common_depth([each[:-1] for each in directories])
        start = common if self._level is None else min(common, self._level)
        return ["/".join(each[start : None if self._level is None else self._level + 1]) for each in directories]

    def are_labelled(self, directories: Sequence[Directories]) -> bool:
        """Returns True if all images of a split lie in directories of classes, some of them in those of training images."""
        if self._reason or any(len(each) <= (self._level or 0) for each in directories):
            return False
        return bool(self._known & set(self._keys(directories)))

    def classes(
        self, count: int, train: list[int], held_out: list[int], directories: Sequence[Directories]
    ) -> tuple[np.ndarray | None, tuple[str, ...] | None, str]:
        """Returns the class labels `[count]`, the names of the classes, and the reason if there are none."""
        if self._reason:
            return None, None, self._reason
        parts = [[directories[i] for i in places] for places in (train, held_out) if places]
        if held_out and not self.are_labelled(parts[1]):
            reason = (
                "the images to evaluate on lie in no directories of classes, as those to train on do. Name the directory of the latter as "
                "the data set, so that some of them are held out"
            )
            return None, None, reason
        keys = [key for part in parts for key in self._keys(part)]
        found = sorted(set(keys))
        if len(found) < 2:
            return None, None, f"all images lie in one directory, {_shown(set(found))}"
        last = collections.Counter(key.rpartition("/")[2] for key in found)
        # Two directories of one name in different places are two classes, called by their paths.
        names = [key if last[key.rpartition("/")[2]] > 1 else key.rpartition("/")[2] for key in found]
        order = sorted(range(len(found)), key=lambda i: names[i])
        numbers = {found[i]: number for number, i in enumerate(order)}
        classes = np.full(count, -1, np.int64)
        classes[[*train, *held_out]] = [numbers[key] for key in keys]
        return classes, tuple(names[i] for i in order), ""


def _first_level(directories: Sequence[Directories]) -> int:
    """Returns the first level, from 0, at which there are two or more directories; 0 if there is none."""
    depths = range(max(map(len, directories), default=0))
    return next((level for level in depths if len({each[level] for each in directories if len(each) > level}) > 1), 0)


def _common_depth(directories: Sequence[Directories]) -> int:
    """Returns the number of directories, from the top, that all images have in common."""
    first, last = min(directories, default=()), max(directories, default=())
    return next(
        (depth for depth, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last))
    )


def _shown(directories: set[str]) -> str:
    """Returns the names of directories for a line; "" is the folder itself."""
    return ", ".join(shown_name(each) if each else "the folder itself" for each in sorted(directories)[:NAMES_SHOWN])
