"""Writes docs/reference.md from the code: `make reference`, or python -m tools.make_reference."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from absl import flags

import sela_tf
from sela_tf.cli.help import default_in_words
from sela_tf.runs import contents

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "reference.md"
TRAIN, PROBE = "sela_tf.train", "sela_tf.probe"
COMMANDS = (
    TRAIN, "sela_tf.label", PROBE, "sela_tf.report", "sela_tf.export", "sela_tf.convert", "components.data_ingestion.__main__", "components.self_labelling.__main__",
    "components.linear_probe.__main__", "components.pipeline",
)  # fmt: skip
OF_ALL_COMMANDS = ("help", "version", "debug")
INTRODUCTION = """# Reference

Made from the code by `make reference`: do not edit this page. A test compares the two.
"""


def command_flags(module: str) -> tuple[str, dict[str, flags.Flag]]:
    """The usage line of a command with its description, and its flags by name, as its `--help` has them."""
    command = importlib.import_module(module).main
    values = command.make_flags()
    return command.usage.strip(), {name: values[name] for name in values if name == values[name].name}


def cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(header: Collection[str], rows: Collection[Collection[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def flag_row(flag: flags.Flag) -> list[str]:
    """Name, default and meaning of a flag."""
    choices = getattr(flag.parser, "enum_values", None)
    # absl begins the help of a choice with the choices, between < and >.
    meaning = re.sub(r"^<[^>]*>:?\s*", "", flag.help or "") if choices else flag.help or ""
    meaning += f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    default = default_in_words(flag.default)
    name = f"`--[no]{flag.name}`" if flag.boolean else f"`--{flag.name}`"
    return [name, f"`{default}`" if default else "", meaning]


def is_same(one: flags.Flag, other: flags.Flag | None) -> bool:
    """Compares what two flags of one name say."""
    return other is not None and flag_row(one) == flag_row(other)


def commands() -> Iterator[str]:
    """A section for each command; flags that are those of training or probing are named once."""
    known = {module: command_flags(module) for module in COMMANDS}
    yield "## Commands\n"
    yield (
        "Every setting is written `--name=value`; a setting of two values also `--name` or `--noname`. `--flagfile=FILE` reads flags from a "
        "file, and what follows it wins. Lists are separated by commas. All commands have "
        + ", ".join(f"`--{name}` ({(known[TRAIN][1][name].help or '').rstrip('.').lower()})" for name in OF_ALL_COMMANDS)
        + ". The exit statuses are those of [promises.md](promises.md); components.pipeline ends with 1 when a step fails. Sources of defaults: P is the paper, R its reference code.\n"
    )
    for module, (usage, own) in known.items():
        synopsis, _, description = usage.partition("\n\n")
        yield f"### `python -m {module.removesuffix('.__main__')}`\n"
        # The last sentence of the description announces the list that --help prints.
        yield re.sub(r"\s*[^.]*:$", "", description.strip()) + "\n"
        yield "\n".join(f"`{line}`" for line in synopsis.splitlines()) + "\n"
        left = {name: flag for name, flag in own.items() if name not in OF_ALL_COMMANDS}
        if module.startswith("components."):
            for other in (TRAIN, PROBE):
                theirs = {name: flag for name, flag in known[other][1].items() if name not in OF_ALL_COMMANDS}
                shared = [name for name, flag in left.items() if is_same(flag, theirs.get(name))]
                if len(shared) > len(theirs) / 2:
                    lacking = ", ".join(f"`--{name}`" for name in theirs if name not in own)
                    yield f"It has the flags of `python -m {other}`{f', except {lacking}' if lacking else ''}. Its other flags:\n"
                    left = {name: flag for name, flag in left.items() if name not in shared}
        yield table(("flag", "default", "what"), [flag_row(flag) for flag in left.values()]) + "\n"


def described(title: str, introduction: str, header: str, entries: Mapping[str, str]) -> Iterator[str]:
    """A section with a table of names and what they hold."""
    yield f"{title}\n"
    yield f"{introduction}\n"
    yield table((header, "what"), [(f"`{name}`", what) for name, what in entries.items()]) + "\n"


def run_files() -> Iterator[str]:
    """The sections on the directory of a run."""
    yield from described("## The directory of a run", "`--workdir`, in the order of appearance.", "file", contents.RUN_DIRECTORY)
    yield from described("### `results.json`", "An object.", "key", contents.RESULT_KEYS)
    yield from described("", "The first five and `random_clusters` hold figures.", "key", contents.FIGURE_KEYS)
    yield from described("", "Each network in `without_classes` holds measures.", "key", contents.STABILITY_KEYS)
    yield from described(
        "### `labels.npz`", "Arrays, of T heads, K clusters and N training images.", "array", contents.LABEL_ARRAYS
    )
    yield from described("### `metrics.jsonl`", "A JSON object a line, with `kind` and `step`.", "`kind`", contents.METRIC_ROWS)


def signature(name: str, value: Any) -> str:
    """A call with the names of its parameters and their defaults."""
    if not callable(value) or (isinstance(value, type) and issubclass(value, BaseException)):
        return name
    if dataclasses.is_dataclass(value) and any("help" in field.metadata for field in dataclasses.fields(value)):
        return f"{name}(**settings)"
    bare = []
    for parameter in inspect.signature(value).parameters.values():
        default = parameter.default
        if default is not inspect.Parameter.empty and not isinstance(default, str | int | float | tuple | type(None)):
            default = getattr(default, "__name__", type(default).__name__)
            parameter = parameter.replace(default=type("Default", (), {"__repr__": lambda _, text=default: text})())
        bare.append(parameter.replace(annotation=inspect.Parameter.empty))
    return f"{name}{inspect.Signature(bare)}"


def summary(value: Any) -> str:
    """The first paragraph of a docstring, where the object has one of its own."""
    if not (isinstance(value, type) or inspect.isroutine(value)):
        return f"A {type(value).__name__}" + (
            f" of {', '.join(f'`{key}`' for key in value)}." if isinstance(value, Mapping) else "."
        )
    return inspect.cleandoc(value.__doc__ or "").partition("\n\n")[0]


def public_names() -> Iterator[str]:
    """The names of `import sela_tf`, with signature and summary."""
    yield "## Python\n"
    yield (
        "`import sela_tf`; types and arguments are in the docstrings. `**settings` are the flags of the command of the same name, as keyword "
        "arguments.\n"
    )
    names = [name for name in sorted(sela_tf.__all__, key=str.lower) if not name.startswith("__")]
    rows = [(f"`{signature(name, getattr(sela_tf, name))}`", summary(getattr(sela_tf, name))) for name in names]
    yield table(("name", "what"), rows) + "\n"


def make() -> str:
    """The page."""
    parts = [INTRODUCTION, *commands(), *run_files(), *public_names()]
    return "\n".join(part for part in parts if part.strip())


if __name__ == "__main__":
    PAGE.write_text(make())
