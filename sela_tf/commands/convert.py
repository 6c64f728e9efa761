"""The work of `python -m sela_tf.convert`: a folder of images as a folder that training reads."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tqdm import tqdm

from sela_tf.commands.outputs import only_writer
from sela_tf.data.converting import inspect_or_convert, is_named_like_image, missing_packages
from sela_tf.data.csv_rows import csv_text
from sela_tf.data.errors import SourceError
from sela_tf.data.folder_contents import folder_contents
from sela_tf.data.left_out import ImageNote, in_words, write_left_out
from sela_tf.files.atomic import unfinished_of, whole_file, write_whole
from sela_tf.files.locks import LOCK
from sela_tf.runs.names import LEFT_OUT
from sela_tf.settings.commands import ConvertConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import refuse_unwritable

CONVERTED = "converted.csv"
_MARK = ".sela_tf_convert.json"
"""The file of the output directory that says what it was made of. It is hidden, so that a data set does not count it."""


class _Outcome(NamedTuple):
    """The result for one file."""

    size: int
    """The size of the file in bytes."""
    mtime_ns: int
    """The time of its last change."""
    output: str = ""
    """The name of its copy or of its png; "" for a file that is left out."""
    converted: str = ""
    """The reason for its conversion; "" if it was copied."""
    problem: str = ""
    """The reason why it is left out, if it is an image."""


def convert_folder(settings: ConvertConfig) -> str:
    """Writes a folder whose images training reads, in the same tree, with left_out.csv and converted.csv.

    Files that TensorFlow reads are copied, others are converted to png (`sela_tf.data.converting`), damaged ones are left out. The same
    call again does only what is missing or has changed since.

    Args:
        settings: The two directories.

    Returns:
        A summary for a terminal.

    Raises:
        ConfigError: A package is missing, or a directory cannot be used.
        SourceError: There is no image in the folder.
    """
    root, output = pathlib.Path(settings.input), pathlib.Path(settings.output)
    _check_directories(root, output)
    names = folder_contents(str(root), name=f"`input={root}`").names
    if lacking := missing_packages(names):
        raise ConfigError(f"`input={root}`: {lacking}")
    output.mkdir(parents=True, exist_ok=True)
    with only_writer("output", output):
        return _convert_files(root, output, names)


def _convert_files(root: pathlib.Path, output: pathlib.Path, names: Sequence[str]) -> str:
    """Does the work of `convert_folder` for the files `names`."""
    before = _begin(root, output)
    outputs = _output_names(names)
    outcomes: dict[str, _Outcome] = {}

    def convert(name: str) -> None:
        outcomes[name] = _convert(root, output, name, outputs[name], before.get(name))

    try:
        # Pillow warns about damaged files, which are listed.
        with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            warnings.simplefilter("ignore")
            for _ in tqdm(pool.map(convert, names), total=len(names), unit="file", disable=None, leave=False):
                pass
    finally:
        # After a signal, too, so that the same call does only the rest.
        _write_mark(root, output, {**before, **outcomes})
    return _finish(root, output, before, outcomes)


def _check_directories(root: pathlib.Path, output: pathlib.Path) -> None:
    """Checks that the input is a directory, and that the output is one elsewhere that can be written.

    Raises:
        ConfigError: One of them cannot be used.
    """
    if not root.is_dir():
        raise ConfigError(f"`input={root}`: there is no such directory")
    if output.is_relative_to(root) or root.is_relative_to(output):
        raise ConfigError(f"`output={output}` and `input={root}` lie in one another: name a directory elsewhere")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"`output={output}` is a file: name a directory")
    refuse_unwritable("output", output)


def _begin(root: pathlib.Path, output: pathlib.Path) -> dict[str, _Outcome]:
    """Makes the output directory this call's own, and returns the results of an earlier call by name.

    Raises:
        ConfigError: The directory holds something else.
    """
    mark = output / _MARK
    if mark.exists():
        made_of, files = _read_mark(mark, output)
        if made_of != str(root):
            raise ConfigError(f"`output={output}` was made of `input={made_of}`: name another directory")
        for left in output.rglob(unfinished_of(pathlib.Path("*")).name):
            left.unlink()
        return files
    # A call that was killed may have left its first mark unfinished.
    unfinished_of(mark).unlink(missing_ok=True)
    if found := sorted(set(os.listdir(output)) - {LOCK}):
        raise ConfigError(f"`output={output}` holds other files ({', '.join(found[:3])}): name a new or an empty directory")
    _write_mark(root, output, {})
    return {}


def _read_mark(mark: pathlib.Path, output: pathlib.Path) -> tuple[str, dict[str, _Outcome]]:
    """Returns the directory that the output was made of, and the results by name.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        made_of = json.loads(mark.read_text())
        return str(made_of["input"]), {name: _Outcome(*values) for name, values in made_of["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"`output={output}`: {mark} is damaged, so nobody knows what was converted: remove the directory, or name another"
        ) from error


def _write_mark(root: pathlib.Path, output: pathlib.Path, files: Mapping[str, _Outcome]) -> None:
    write_whole(output / _MARK, json.dumps({"input": str(root), "files": dict(sorted(files.items()))}) + "\n")


def _output_names(names: Sequence[str]) -> dict[str, str]:
    """Returns the name that the png of each file would have: a.tif becomes a.png, but a.tif.png where another image is called a, too."""
    stems = collections.Counter(_stem(name) for name in names if is_named_like_image(name))
    taken = {name.casefold() for name in names}
    found = {}
    for name in names:
        path = pathlib.PurePosixPath(name)
        if path.suffix.lower() == ".png":
            found[name] = name
            continue
        png = path.with_suffix(".png").as_posix() if stems[_stem(name)] <= 1 else f"{name}.png"
        while png.casefold() in taken:
            png += ".png"
        taken.add(png.casefold())
        found[name] = png
    return found


def _stem(name: str) -> str:
    """Returns a path without its ending, in one case, as file systems that ignore case see it."""
    return pathlib.PurePosixPath(name).with_suffix("").as_posix().casefold()


def _convert(root: pathlib.Path, output: pathlib.Path, name: str, png_name: str, before: _Outcome | None) -> _Outcome:
    """Copies or converts one file, unless an earlier call did, and returns the result."""
    try:
        found = (root / name).stat()
        same = _Outcome(found.st_size, found.st_mtime_ns)
    except OSError:  # A broken link is named below.
        same = _Outcome(-1, 0)
    if before is not None and before[:2] == same[:2] and (not before.output or (output / before.output).exists()):
        return before
    read = inspect_or_convert(str(root), name)
    if read.file.info is None:
        return same._replace(problem=read.file.problem)
    made = output / (png_name if read.png else name)
    made.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(made) as unfinished:
        if read.png:
            unfinished.write_bytes(read.png)
        else:
            shutil.copyfile(root / name, unfinished)
    return same._replace(output=png_name if read.png else name, converted=read.reason)


def _finish(root: pathlib.Path, output: pathlib.Path, before: Mapping[str, _Outcome], outcomes: Mapping[str, _Outcome]) -> str:
    """Removes outputs of files that are gone, writes both lists, and returns the summary.

    Raises:
        SourceError: There is no image.
    """
    made = {each.output for each in outcomes.values() if each.output}
    for old in {each.output for each in before.values() if each.output} - made:
        (output / old).unlink(missing_ok=True)
    _write_mark(root, output, outcomes)
    left_out = [ImageNote(name, each.problem) for name, each in sorted(outcomes.items()) if each.problem]
    write_left_out(output / LEFT_OUT, left_out)
    if not made:
        raise SourceError(f"`input={root}`: no image in it or below it" + (f": {in_words(left_out)}" if left_out else ""))
    converted = [(name, each.output, each.converted) for name, each in sorted(outcomes.items()) if each.converted]
    write_whole(output / CONVERTED, csv_text(("name", "output", "reason"), converted))
    others = len(outcomes) - len(made) - len(left_out)
    lines = [
        f"{len(made)} images in {output}: {len(converted)} converted to png ({CONVERTED}), {len(made) - len(converted)} copied"
    ]
    if left_out:
        lines.append(f"left out, {len(left_out)} images that cannot be read ({LEFT_OUT}): {in_words(left_out)}")
    if others:
        lines.append(f"left out, {others} files that are no images")
    return "\n".join(lines)
