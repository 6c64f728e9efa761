"""The layout of folders as older runs took it, whose flags.cfg has no `class_level`: they are continued and judged as they began."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sela_tf.data.errors import NAMES_SHOWN
from sela_tf.data.image_set import EVAL_NAMES, TRAIN_NAMES
from sela_tf.data.sources.layout import Layout


def old_layout(names: Sequence[str]) -> Layout:
    """Finds the splits and classes of a folder by the rules of older runs (`class_level=old`).

    Only the top-level directories train or training, and test, val, valid, validation or eval, are splits. The class is the name of the
    directory that holds the image, wherever that directory is.

    Args:
        names: Paths of the images relative to the folder, with forward slashes.
    """
    tops = [name.split("/")[0].lower() if "/" in name else "" for name in names]
    found = set(tops)
    split = next((each for each in EVAL_NAMES if each in found), None)
    # A directory `train` beside others, none of them for evaluation, is a class (the vehicle).
    has_splits = bool(found & set(TRAIN_NAMES)) and (split is not None or found <= set(TRAIN_NAMES))
    train = [i for i, top in enumerate(tops) if not has_splits or top in TRAIN_NAMES]
    held_out = [i for i, top in enumerate(tops) if has_splits and top == split]
    report = []
    if left_out := len(names) - len(train) - len(held_out):
        elsewhere = ", ".join(sorted(top or "the folder itself" for top in found - {*TRAIN_NAMES, split})[:NAMES_SHOWN])
        report.append(f"left out, {left_out} images outside the splits, in {elsewhere}")
    both = train + held_out
    parents = [names[i].split("/")[:-1] for i in both]
    beside = sum(len(each) <= has_splits for each in parents)
    class_names = tuple(sorted({each[-1] for each in parents if len(each) > has_splits}))
    if beside or len(class_names) < 2:
        reason = f"{beside} images lie beside the directories" if beside else "all images lie in one directory"
        return Layout(train, held_out, None, None, reason, tuple(report))
    numbers = {name: number for number, name in enumerate(class_names)}
    classes = np.full(len(names), -1, np.int64)
    classes[both] = [numbers[each[-1]] for each in parents]
    return Layout(train, held_out, classes, class_names, "", tuple(report))
