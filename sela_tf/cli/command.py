"""What all commands share: flags to settings, TensorFlow without its noise, one clear line for what is wrong, exit statuses."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from absl import flags as absl_flags

from sela_tf import __version__
from sela_tf.cli import flags
from sela_tf.compat.keras_registration import other_backend
from sela_tf.compat.quiet import stderr_kept_back
from sela_tf.settings.fields import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings")
SettingsOf = TypeVar("SettingsOf", bound="DataclassInstance")


def run_command(
    argv: list[str] | None,
    *,
    name: str,
    usage: str,
    define: Callable[[absl_flags.FlagValues], None],
    read: Callable[[absl_flags.FlagValues], Settings],
    work: Callable[[Settings], int],
    stopped: str,
) -> int:
    """Runs a command; returns its exit status: that of `work`, 2 for bad input, 128 + n after signal n.

    Args:
        argv: name and arguments; None for those of the process.
        name: of the module, which errors begin with.
        usage: shown above the flags by --help.
        define: adds the command's own flags.
        read: makes settings of the parsed flags, before TensorFlow is loaded; refuses with ConfigError.
        work: does the work, TensorFlow loaded. Its ValueError, OSError and OpError are told in one line.
        stopped: said after Ctrl-C or SIGTERM.
    """
    values = absl_flags.FlagValues()
    define(values)
    absl_flags.DEFINE_bool("help", False, "Show this.", short_name="h", flag_values=values)
    absl_flags.DEFINE_bool("version", False, "Show the versions of sela_tf and TensorFlow, and the devices.", flag_values=values)
    absl_flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
    try:
        flags.parse(values, sys.argv if argv is None else argv)
        if values["help"].value:
            print(usage + values.get_help())
            return 0
        if values["version"].value:
            print(_versions())
            return 0
        settings = read(values)
    except ConfigError as error:
        return _refuse(name, error, debug=values.is_parsed() and values["debug"].value)

    # while training runs, the loop saves on a signal; at other times there is nothing to save but the line to say
    signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            load_tensorflow()
        except ConfigError as error:
            return _refuse(name, error, debug=values["debug"].value)
        import tensorflow as tf

        # an image file that was removed or changed meanwhile comes as an OpError, with its path in the first line
        try:
            return work(settings)
        except (ValueError, OSError, tf.errors.OpError) as error:
            return _refuse(name, error, debug=values["debug"].value)
    except KeyboardInterrupt as signalled:
        print(f"\n{name}: stopped{stopped}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(signalled, _Terminated) else signal.SIGINT)


def run_settings_command(
    argv: list[str] | None, *, name: str, usage: str, kind: type[SettingsOf], work: Callable[[SettingsOf], int]
) -> int:
    """`run_command` of a command that writes all or nothing, and whose flags are the fields of `kind` and no more."""
    return run_command(
        argv,
        name=name,
        usage=usage,
        define=lambda values: flags.define(values, kind),
        read=lambda values: flags.settings(values, kind),
        work=work,
        stopped="; nothing was written",
    )


class _Terminated(KeyboardInterrupt):
    pass


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _refuse(name: str, error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    message = str(getattr(error, "message", error))
    # of Python's own in a data set, TensorFlow tells where it was, what it said, and the traceback
    raised = re.search(r"SourceError: (.*?)\n+Traceback", message, re.DOTALL)
    print(f"{name}: error: {' '.join((raised[1] if raised else message).split())}", file=sys.stderr)
    return 2


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
        # then its backend is known, also where it is not the environment that says it
        importlib.import_module("keras")
    if (wrong := other_backend()) is not None:
        raise ConfigError(wrong)
    tf.get_logger().setLevel("ERROR")


def _versions() -> str:
    load_tensorflow()
    import keras
    import tensorflow as tf

    devices = ", ".join(device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices())
    return f"sela_tf {__version__}, TensorFlow {tf.__version__}, Keras {keras.__version__}, devices {devices}"
