"""The recipes that come with the package: flagfiles, named by `--recipe`."""

from __future__ import annotations

import difflib
import pathlib
import re
import textwrap

import sela_tf
from sela_tf.settings.fields import ConfigError

FLAG = "recipe"
LIST = "help"
_WIDTH = 100


def directory() -> pathlib.Path:
    """Returns the directory of the recipes: in the package as it is installed, beside it in a checkout."""
    package = pathlib.Path(sela_tf.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def recipes() -> dict[str, pathlib.Path]:
    """Returns the flagfiles of all recipes, by name."""
    return {path.stem: path for path in sorted(directory().glob("*.cfg"))}


def listed() -> str:
    """Returns a line for each recipe: its name, and the first clause of its source."""
    found = recipes()
    width = max(map(len, found), default=0)
    return "\n".join(f"  {name:<{width}}  {_source(path)}" for name, path in found.items())


def with_flagfiles(argv: list[str]) -> tuple[list[str], bool]:
    """Returns the arguments with each recipe replaced by its flagfile, which comes first, so that all other flags win over it; and True if
    the list of recipes is asked for.

    Raises:
        ConfigError: there is no such recipe.
    """
    named: list[str] = []
    rest: list[str] = []
    waiting = False
    for argument in argv[1:]:
        flag, equals, value = argument.partition("=")
        if waiting:
            named.append(argument)
            waiting = False
        elif flag in (f"--{FLAG}", f"-{FLAG}"):
            named += [value] if equals else []
            waiting = not equals
        else:
            rest.append(argument)
    if waiting:
        raise ConfigError(f"`{FLAG}` needs a name: {', '.join(recipes())}")
    return [argv[0], *(f"--flagfile={_path(name)}" for name in named if name != LIST), *rest], LIST in named


def _path(name: str) -> pathlib.Path:
    found = recipes()
    stem = name.removesuffix(".cfg")
    if stem not in found:
        near = difflib.get_close_matches(stem, found, n=1)
        raise ConfigError(
            f"there is no recipe `{FLAG}={name}`: {f'did you mean {near[0]}? ' if near else ''}`{FLAG}={LIST}` lists them"
        )
    return found[stem]


def _source(path: pathlib.Path) -> str:
    text = re.sub(r"\n#\s*", " ", path.read_text())
    found = re.search(r"# Source: (.*?)(?:\.\s|$)", text)
    return textwrap.shorten(found[1], _WIDTH, placeholder=" …") if found else ""
