"""The source of folders: directories with image files of any size, in any depth."""

from __future__ import annotations

import collections
import concurrent.futures
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from sela_tf.data.errors import NAMES_SHOWN, SourceError
from sela_tf.data.image_set import EVAL_NAMES, TRAIN_NAMES, ImageSet, SourceName, Splits
from sela_tf.data.listing import FileInfo, inspect_header, list_folder, unchanged, walk
from sela_tf.data.stores import Files


def load_folder(
    root: str,
    *,
    source: SourceName,
    skip_bad_images: bool = False,
    cache_dir: str = "",
    reads_as_before: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Splits:
    """Loads the paths of every jpeg, png, gif, bmp and webp below a directory, in the order of their names. Hidden files are left out.

    Each file is read and decoded once, so that damaged files are found before training. The results are kept in `cache_dir`, see
    `list_folder`. Top-level directories named train, and test, val or similar, are splits; test is preferred to val. The name of the
    parent directory is the class if there are at least two such names.

    Args:
        root: The directory.
        source: The name of the source.
        skip_bad_images: Leaves damaged images out, instead of refusing the folder.
        cache_dir: The directory of listings; "" for none.
        reads_as_before: Reads the images that were read before there were pixel rules.
        tell: A function that is called with lines about the progress.

    Raises:
        SourceError: There is no image, or images are damaged and `skip_bad_images` is False. The message has names and counts.
    """
    files = list_folder(root, walk(root, name=str(source)), cache_dir=cache_dir, tell=tell)
    if reads_as_before:
        files = [file.before_rules() for file in files]
    return splits_of_files(root, files, source=source, skip_bad_images=skip_bad_images)


def outline_folder(root: str, *, source: SourceName, cache_dir: str = "", reads_as_before: bool = False) -> Splits:
    """Outlines a folder without decoding images: by its listing, and by the headers of files that are not listed.

    Damaged images are counted if their headers are whole. The number of channels is not known.

    Raises:
        SourceError: There is no image.
    """
    names = walk(root, name=str(source))
    listed = unchanged(root, names, cache_dir=cache_dir)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = zip(listed, names, strict=True)
        files = list(pool.map(lambda pair: pair[0] or inspect_header(root, pair[1]), pairs))
    if reads_as_before:
        files = [file.before_rules() for file in files]
    return splits_of_files(root, files, source=source, skip_bad_images=True)


def splits_of_files(root: str, files: Sequence[FileInfo], *, source: SourceName, skip_bad_images: bool = False) -> Splits:
    """Makes the splits of a folder from the results for its files, in the order of their names.

    Args:
        root: The directory.
        files: The result for each file, as `list_folder` returns them.
        source: The name of the source.
        skip_bad_images: Leaves damaged images out, instead of refusing the folder.

    Raises:
        SourceError: There is no image, or images are damaged and `skip_bad_images` is False.
    """
    images = [file for file in files if file.info is not None]
    foreign = [file for file in files if file.is_foreign]
    damaged = [file for file in files if file.problem and not file.is_foreign]
    others = len(files) - len(images) - len(foreign) - len(damaged)
    if damaged and not skip_bad_images:
        raise SourceError(
            f"{source}: {len(damaged)} of {len(files) - others} images cannot be read: {_listed(damaged)}. "
            "Repair or remove them, or leave them out with `skip_bad_images=True`"
        )
    if not images:
        rejected = _listed([*foreign, *damaged])
        raise SourceError(
            f"{source}: no jpeg, png, gif, bmp or webp image in {root!r} or below it; {len(files)} other files"
            + (f" ({rejected})" if rejected else "")
        )
    kinds = collections.Counter(file.info.kind for file in images if file.info)
    report = [f"{len(images)} images in {root!r}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())]
    if foreign:
        report.append(f"left out, {len(foreign)} images of a format that is not read: {_listed(foreign)}")
    if damaged:
        report.append(f"left out, {len(damaged)} damaged images: {_listed(damaged)}")
    if others:
        report.append(f"left out, {others} files that are no images")

    tops = {file.top for file in images}
    eval_name = next((each for each in EVAL_NAMES if each in tops), None)
    if eval_name and not tops & set(TRAIN_NAMES) and any(tf.io.gfile.isdir(f"{root}/{each}") for each in TRAIN_NAMES):
        raise SourceError(f"{source}: the training directory is empty, and {eval_name!r} is for evaluation")
    # A directory `train` beside others, none of them for evaluation, is a class (the vehicle).
    if not (tops & set(TRAIN_NAMES) and (eval_name or tops <= set(TRAIN_NAMES))):
        return Splits(_image_set(source, images, images, 0, report), None, tuple(report))
    train = [file for file in images if file.top in TRAIN_NAMES]
    held_out = [file for file in images if file.top == eval_name]
    both = train + held_out
    if len(both) < len(images):
        elsewhere = ", ".join(sorted(top or "the folder itself" for top in tops - {*TRAIN_NAMES, eval_name})[:NAMES_SHOWN])
        report.append(f"left out, {len(images) - len(both)} images outside the splits, in {elsewhere}")
    training_set = _image_set(source, train, both, 1, report)
    return Splits(training_set, _image_set(source, held_out, both, 1, []) if held_out else None, tuple(report))


def _image_set(source: SourceName, files: list[FileInfo], all_files: list[FileInfo], depth: int, report: list[str]) -> ImageSet:
    """Makes the set of one split.

    Args:
        source: The name of the source.
        files: Images of the split.
        all_files: Images of all splits, which decide on channels and classes.
        depth: The number of directories above those of the classes.
        report: A list that lines for the user are added to.
    """
    infos = [file.info for file in files if file.info is not None]
    # A single colour image makes it a colour set, so that no colour is lost.
    channels = 3 if any(file.info is not None and file.info.channels >= 3 for file in all_files) else 1
    sizes = {(info.height, info.width) for info in infos}
    class_names = _class_names(all_files, depth, report)
    numbers = {each: number for number, each in enumerate(class_names or ())}
    return ImageSet(
        name=source.name,
        setting=source.setting,
        channels=channels,
        store=Files(tuple(file.path for file in files), np.array([info.largest for info in infos], np.int32)),
        names=tuple(file.name for file in files),
        classes=np.array([numbers[file.name.split("/")[-2]] for file in files], np.int64) if class_names else None,
        class_names=class_names,
        image_size=sizes.pop() if len(sizes) == 1 else None,
    )


def _class_names(files: list[FileInfo], depth: int, report: list[str]) -> tuple[str, ...] | None:
    """Returns the names of the images' directories; None if there is only one, or if images lie beside the directories."""
    parents = [file.name.split("/")[:-1] for file in files]
    names = sorted({parent[-1] for parent in parents if len(parent) > depth})
    beside = [file.name for file, parent in zip(files, parents, strict=True) if len(parent) <= depth]
    if beside and names:
        report.append(
            f"no classes are taken from the directories, because {len(beside)} images lie beside them: {', '.join(beside[:NAMES_SHOWN])}"
        )
    return tuple(names) if len(names) >= 2 and not beside else None


def _listed(files: list[FileInfo]) -> str:
    """Returns the first names with their problems, for a message."""
    shown = "; ".join(f"{file.name} ({file.problem})" for file in files[:NAMES_SHOWN])
    return shown + (f"; and {len(files) - NAMES_SHOWN} more" if len(files) > NAMES_SHOWN else "")
