"""The console command `sela-tf COMMAND --setting=value …`, the same as `python -m sela_tf.COMMAND`."""

from __future__ import annotations

import importlib
import sys

from sela_tf.cli.command import CONSOLE

_COMMANDS = {
    "train": "train a network on images by self-labelling, or continue a run",
    "label": "write the clusters of images to a file",
    "probe": "measure a finished run by linear probes, kNN and k-means",
    "report": "draw the report of a finished run anew, with names of its clusters",
    "convert": "write a folder of images of any format as one that training reads",
    "export": "write a SavedModel for TensorFlow Serving",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first argument names; returns its exit status.

    Args:
        argv: name and arguments; None for those of the process.
    """
    _, *arguments = sys.argv if argv is None else argv
    name, *rest = arguments or [""]
    if name in _COMMANDS:
        command = importlib.import_module(f"sela_tf.{name}")
        return command.main([f"{CONSOLE} {name}", *rest])
    if name == "--version":
        return importlib.import_module("sela_tf.train").main([CONSOLE, name])
    lines = [f"usage: {CONSOLE} COMMAND --setting=value …", ""]
    lines += [f"  {CONSOLE} {each:<8}{what}" for each, what in _COMMANDS.items()]
    lines += ["", f"{CONSOLE} COMMAND --help lists the settings of a command."]
    if name in ("", "help", "-h", "--help"):
        print("\n".join(lines))
        return 0
    print(f"{CONSOLE}: error: there is no command {name!r}: {', '.join(_COMMANDS)}", file=sys.stderr)
    return 2
