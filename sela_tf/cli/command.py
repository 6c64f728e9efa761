"""A command of the command line: from flags to settings, to the library, to an exit status."""

from __future__ import annotations

import dataclasses
import importlib
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from sela_tf import __version__
from sela_tf.cli import flags, recipes
from sela_tf.cli.errors import exit_status, told_to_user
from sela_tf.cli.help import help_text
from sela_tf.cli.signals import StoppedBySignal, Terminated, raise_on_sigterm
from sela_tf.cli.wording import in_flags, on_one_line
from sela_tf.compat.keras_registration import other_backend
from sela_tf.compat.quiet import stderr_kept_back
from sela_tf.settings.commands import ConvertConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONSOLE = "sela-tf"
"""The console command."""
NOTHING_WRITTEN = "; nothing was written"
CONTINUES = "; the same command continues from the last checkpoint, if there is one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command, `python -m NAME --setting=value …`. Called, it runs and returns its exit status.

    The status is that of `work`; for an error, told in one line, 2 for flags and settings, 3 for data, 4 for numbers, 5 for a lost worker,
    6 for storage; 128 + n after signal n; 1, with a traceback, for a mistake of the program.
    """

    name: str
    """The module, which errors begin with."""
    usage: str
    """The text that --help shows above the flags."""
    settings: tuple[type[DataclassInstance], ...]
    """Dataclasses of settings whose fields are the flags."""
    work: Callable[..., int]
    """Does the work with TensorFlow loaded. It gets an instance of each dataclass, or what `read` returns."""
    define: Callable[[absl_flags.FlagValues], None] | None = None
    """Adds the flags, where they are not just the fields of `settings`."""
    read: Callable[[absl_flags.FlagValues], tuple[Any, ...]] | None = None
    """Makes the arguments of `work` from the parsed flags, where they are not just instances of `settings`. It runs before TensorFlow is
    loaded, and refuses with ConfigError."""
    stopped: str = NOTHING_WRITTEN
    """Ends the line that is printed when a signal stops the command where its state cannot be saved."""

    def __call__(self, argv: list[str] | None = None) -> int:
        """Runs the command.

        Args:
            argv: name and arguments; None for those of the process.
        """
        argv = sys.argv if argv is None else argv
        values = self.make_flags()
        try:
            with_recipes, lists_them = recipes.with_flagfiles(argv) if recipes.FLAG in values else (argv, False)
            flags.parse(values, with_recipes, tell=print)
            if values["help"].value:
                print(help_text(self.usage, self.settings, values))
                return 0
            if lists_them:
                print(recipes.listed())
                return 0
            if values["version"].value:
                print(_versions())
                return 0
            if recipes.FLAG in values and values[recipes.FLAG].value:
                raise ConfigError(f"`{recipes.FLAG}={values[recipes.FLAG].value}` stands in a flagfile: it is for the command line")
            arguments = self.read_settings(values)
        except ConfigError as error:
            return self._refuse(error, values)

        # While training runs, the loop saves on a signal. At other times there is nothing to save but the line to print.
        raise_on_sigterm()
        try:
            return self._run(arguments, values)
        except StoppedBySignal as stopped:
            command = argv[0] if argv[0].startswith(CONSOLE) else f"python -m {self.name}"
            print(f"{stopped}. The same command continues:\n  {command} {shlex.join(argv[1:])}", flush=True)
            return 128 + stopped.signal_number
        except KeyboardInterrupt as signalled:
            print(f"\n{self.name}: stopped{self.stopped}", file=sys.stderr)
            return 128 + (signal.SIGTERM if isinstance(signalled, Terminated) else signal.SIGINT)

    def make_flags(self) -> absl_flags.FlagValues:
        """Returns the flags of the command, not parsed yet."""
        values = absl_flags.FlagValues()
        if self.define is not None:
            self.define(values)
        else:
            for kind in self.settings:
                flags.define(values, kind)
        if SelaConfig in self.settings:
            words = f"Settings of the recipe of this name; `{recipes.FLAG}={recipes.LIST}` lists them. Other flags win over it."
            absl_flags.DEFINE_string(recipes.FLAG, "", in_flags(words, (recipes.FLAG,)), flag_values=values)
        absl_flags.DEFINE_bool("help", False, "Show this.", short_name="h", flag_values=values)
        absl_flags.DEFINE_bool(
            "version", False, "Show the versions of sela_tf and TensorFlow, and the devices.", flag_values=values
        )
        absl_flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
        return values

    def read_settings(self, values: absl_flags.FlagValues) -> tuple[Any, ...]:
        """Returns the arguments of `work`, from parsed flags.

        Raises:
            ConfigError: a value is out of range.
        """
        if self.read is not None:
            return self.read(values)
        return tuple(flags.settings(values, kind) for kind in self.settings)

    def _run(self, arguments: tuple[Any, ...], values: absl_flags.FlagValues) -> int:
        try:
            load_tensorflow()
        except ConfigError as error:
            return self._refuse(error, values)
        try:
            return self.work(*arguments)
        except Exception as error:
            # A mistake of ours is shown by its traceback.
            if (told := told_to_user(error)) is None:
                raise
            return self._refuse(told, values)

    def _refuse(self, error: Exception, values: absl_flags.FlagValues) -> int:
        """Prints an error in one line, after its traceback with --debug; returns its exit status."""
        if values.is_parsed() and values["debug"].value:
            traceback.print_exception(error)
        # Commands that read a finished run also name the settings of its training.
        # The way out may be another command.
        names = {*values, *(field.name for kind in (SelaConfig, ConvertConfig) for field in dataclasses.fields(kind))}
        print(f"{self.name}: error: {on_one_line(in_flags(str(error), names))}", file=sys.stderr)
        return exit_status(error)


def load_tensorflow() -> None:
    """Imports TensorFlow, and Keras on it, without the lines that their libraries write on loading; they come out if it fails.

    Raises:
        ConfigError: Keras runs on another backend.
    """
    if (wrong := other_backend()) is not None:
        raise ConfigError(wrong)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with stderr_kept_back():
        import tensorflow as tf

        tf.config.list_physical_devices()
        # Once Keras is loaded, its backend is known even where no environment variable says it.
        importlib.import_module("keras")
    if (wrong := other_backend()) is not None:
        raise ConfigError(wrong)
    tf.get_logger().setLevel("ERROR")


def _versions() -> str:
    load_tensorflow()
    import keras
    import tensorflow as tf

    devices = ", ".join(device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices())
    python = ".".join(map(str, sys.version_info[:3]))
    return f"sela_tf {__version__}, TensorFlow {tf.__version__}, Keras {keras.__version__}, Python {python}, devices {devices}"
