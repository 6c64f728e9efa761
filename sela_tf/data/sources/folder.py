"""The source of folders: directories with image files of any size, in any depth."""

from __future__ import annotations

import collections
import concurrent.futures
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from sela_tf.data.errors import NAMES_SHOWN, SourceError
from sela_tf.data.folder_contents import FolderContents, folder_contents
from sela_tf.data.image_set import ImageSet, SourceName, Splits
from sela_tf.data.left_out import ImageNote, check_rejected, in_words
from sela_tf.data.listing import FileInfo, inspect_header, list_folder, unchanged
from sela_tf.data.sources.layout import Layout, folder_layout, split_role
from sela_tf.data.sources.old_layout import old_layout
from sela_tf.data.stores import Files

_OTHER_SUFFIXES = (
    ".tif", ".tiff", ".psd", ".ico", ".icns", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".pcx", ".tga", ".sgi", ".dds", ".qoi",
    ".jp2", ".j2k", ".jxl", ".avif", ".heic", ".heif",
)  # fmt: skip
"""Endings of names of images in formats that are not read; some of them cannot be told by their first bytes."""
OLD_LEVEL = "old"
"""The value of `class_level` by which a folder is read as older runs read it: their splits, their classes, machine-made files included."""


def load_folder(
    root: str,
    *,
    source: SourceName,
    max_rejected: float = 0.0,
    class_level: str = "auto",
    cache_dir: str = "",
    reads_as_before: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Splits:
    """Loads the paths of every jpeg, png, gif, bmp and webp below a directory, in the order of their names. Hidden files are left out.

    Each file is read and decoded once, so that damaged files are found before training. The results are kept in `cache_dir`, see
    `list_folder`. Splits and classes come from the names of directories, see `folder_layout`.

    Args:
        root: The directory.
        source: The name of the source.
        max_rejected: The largest share of the images that may be left out because they are damaged.
        class_level: The level of directories that are the classes: "auto", "parent", a number from 1, or "old".
        cache_dir: The directory of listings; "" for none.
        reads_as_before: Reads the images that were read before there were pixel rules.
        tell: A function that is called with lines about the progress.

    Raises:
        SourceError: There is no image, or more images are damaged than may be. The message has names and counts.
    """
    found = contents_of_folder(root, source=source, class_level=class_level)
    files = list_folder(root, found.names, cache_dir=cache_dir, tell=tell)
    if reads_as_before:
        files = [file.before_rules() for file in files]
    return splits_of_files(root, files, found, source=source, max_rejected=max_rejected, class_level=class_level)


def contents_of_folder(root: str, *, source: SourceName, class_level: str) -> FolderContents:
    """Returns the names of the files of a folder that may be images."""
    return folder_contents(root, name=str(source), with_machine_made=class_level == OLD_LEVEL)


def outline_folder(
    root: str, *, source: SourceName, class_level: str = "auto", cache_dir: str = "", reads_as_before: bool = False
) -> Splits:
    """Outlines a folder without decoding images: by its listing, and by the headers of files that are not listed.

    Damaged images are counted if their headers are whole. The number of channels is not known.

    Raises:
        SourceError: There is no image.
    """
    found = contents_of_folder(root, source=source, class_level=class_level)
    listed = unchanged(root, found.names, cache_dir=cache_dir)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = zip(listed, found.names, strict=True)
        files = list(pool.map(lambda pair: pair[0] or inspect_header(root, pair[1]), pairs))
    if reads_as_before:
        files = [file.before_rules() for file in files]
    return splits_of_files(root, files, found, source=source, max_rejected=1.0, class_level=class_level)


def splits_of_files(
    root: str,
    files: Sequence[FileInfo],
    found: FolderContents,
    *,
    source: SourceName,
    max_rejected: float = 0.0,
    class_level: str = "auto",
) -> Splits:
    """Makes the splits of a folder from the results for its files, in the order of their names.

    Args:
        root: The directory.
        files: The result for each file, as `list_folder` returns them.
        found: The contents of the folder.
        source: The name of the source.
        max_rejected: The largest share of the images that may be left out because they are damaged.
        class_level: The level of directories that are the classes, as for `load_folder`.

    Raises:
        SourceError: There is no image, or more images are damaged than may be.
    """
    images = [file for file in files if file.info is not None]
    foreign = [ImageNote(file.name, _format_problem(file)) for file in files if file.is_foreign or _is_named_like_image(file)]
    damaged = [ImageNote(file.name, file.problem) for file in files if file.problem and not file.is_foreign]
    num_images = len(images) + len(foreign) + len(damaged)
    check_rejected(damaged, num_images, max_rejected, source=str(source))
    if not images:
        rejected = in_words([*foreign, *damaged])
        raise SourceError(
            f"{source}: no jpeg, png, gif, bmp or webp image in {root!r} or below it; {len(files)} other files"
            + (f" ({rejected}). {_advice(root)}" if foreign else f" ({rejected})" if rejected else "")
        )
    kinds = collections.Counter(file.info.kind for file in images if file.info)
    report = [f"{len(images)} images in {root!r}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())]
    if foreign:
        report.append(f"left out, {len(foreign)} images of a format that is not read: {in_words(foreign)}. {_advice(root)}")
    if damaged:
        report.append(f"left out, {len(damaged)} damaged images: {in_words(damaged)}")
    if others := len(files) - num_images:
        report.append(f"left out, {others} files that are no images")
    if found.machine_made:
        shown = ", ".join(sorted({name.rpartition("/")[2] for name in found.machine_made})[:NAMES_SHOWN])
        report.append(f"left out, {len(found.machine_made)} machine-made directories and files: {shown}")
    names = [file.name for file in images]
    if class_level == OLD_LEVEL:
        layout = old_layout(names)
    else:
        _refuse_evaluation_alone(root, names, str(source))
        layout = folder_layout(names, class_level, source=str(source))
    train, held_out = (_image_set(source, images, places, layout) for places in (layout.train, layout.held_out))
    return Splits(
        train,
        held_out if len(held_out) else None,
        (*report, *layout.report),
        rejected=tuple(sorted([*foreign, *damaged])),
        without_classes=layout.without_classes,
    )


def _is_named_like_image(file: FileInfo) -> bool:
    """Returns True for a file that is not known for an image by its content, and has the name of one."""
    return file.info is None and not file.problem and file.name.lower().endswith(_OTHER_SUFFIXES)


def _format_problem(file: FileInfo) -> str:
    """Returns the reason why an image has a format that is not read."""
    return file.problem or f"{file.name.rpartition('.')[2].lower()}: convert it to png"


def _advice(root: str) -> str:
    """Returns the way out for images of formats that are not read."""
    return f"`sela-tf convert` with `input={root}` writes a folder in which they are png"


def _refuse_evaluation_alone(root: str, names: Sequence[str], source: str) -> None:
    """Refuses a folder whose images are all for evaluation while a directory for training is there, without images."""
    roles = {split_role(name.split("/")[0]) if "/" in name else None for name in names}
    if None in roles or "train" in roles:
        return
    empty = [
        each
        for each in tf.io.gfile.listdir(root)
        if split_role(each.rstrip("/")) == "train" and tf.io.gfile.isdir(f"{root}/{each}")
    ]
    if empty:
        tops = sorted({name.split("/")[0] for name in names})
        raise SourceError(f"{source}: the training directory is empty, and {tops[0]!r} is for evaluation")


def _image_set(source: SourceName, files: Sequence[FileInfo], places: Sequence[int], layout: Layout) -> ImageSet:
    """Makes the set of one split: the files at `places`. Those of both splits decide on the number of channels."""
    chosen = [files[i] for i in places]
    both = [files[i] for i in (*layout.train, *layout.held_out)]
    # A single colour image makes it a colour set, so that no colour is lost.
    channels = 3 if any(file.info is not None and file.info.channels >= 3 for file in both) else 1
    sizes = [(file.info.height, file.info.width) for file in chosen if file.info is not None]
    return ImageSet(
        name=source.name,
        setting=source.setting,
        channels=channels,
        store=Files(
            tuple(file.path for file in chosen),
            np.array([file.info.largest for file in chosen if file.info], np.int32),
            np.array(sizes, np.int64).reshape(-1, 2),
            tuple(file.sha256 for file in chosen),
        ),
        names=tuple(file.name for file in chosen),
        classes=None if layout.classes is None else layout.classes[np.array(places, int)],
        class_names=layout.class_names,
        image_size=sizes[0] if len(set(sizes)) == 1 else None,
        median_side=int(np.median([min(size) for size in sizes])) if sizes else 0,
    )
