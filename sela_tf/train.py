"""The door: python -m sela_tf.train --flagfile=configs/digits.cfg --workdir=DIR"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
import traceback
from types import FrameType

from absl import flags as absl_flags

from sela_tf import __version__, flags
from sela_tf.config import ConfigError

_USAGE = """python -m sela_tf.train --flagfile=configs/NAME.cfg --workdir=DIR [--setting=value …]

Trains a network by self-labelling, or continues the run in DIR. Other than the settings:
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for bad input, 128 + n after signal n."""
    argv = sys.argv if argv is None else argv
    values = absl_flags.FlagValues()
    flags.define(values)
    absl_flags.DEFINE_string("workdir", None, "Directory of the run; made if missing.", flag_values=values)
    absl_flags.DEFINE_bool(
        "dry_run", False, "Try everything once on little, estimate time and memory, write nothing.", flag_values=values
    )
    absl_flags.DEFINE_bool("help", False, "Show this.", short_name="h", flag_values=values)
    absl_flags.DEFINE_bool("version", False, "Show the versions of sela_tf and TensorFlow, and the devices.", flag_values=values)
    absl_flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
    try:
        flags.parse(values, argv)
        if values["help"].value:
            print(_USAGE + values.get_help())
            return 0
        if values["version"].value:
            print(_versions())
            return 0
        config = flags.config(values)
        workdir = values["workdir"].value
        if not workdir and not values["dry_run"].value:
            raise ConfigError("--workdir is missing: the directory that the run is written to")
    except ConfigError as error:
        return _refuse(error, debug=values.is_parsed() and values["debug"].value)

    # while training runs, the loop saves on a signal; at other times there is nothing to save but the line to say
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _load_tensorflow()
        import tensorflow as tf

        from sela_tf.dry_run import dry_run
        from sela_tf.evaluation.summary import table
        from sela_tf.loop import TrainingInterrupted
        from sela_tf.trainer import run

        # an image file that was removed or changed meanwhile comes as an OpError, with its path in the first line
        try:
            if values["dry_run"].value:
                dry_run(config)
                return 0
            results = run(config, workdir)
        except TrainingInterrupted as stopped:
            print(f"{stopped}. The same command continues:\n  python -m sela_tf.train {shlex.join(argv[1:])}", flush=True)
            return 128 + stopped.signal_number
        except (ValueError, OSError, tf.errors.OpError) as error:
            return _refuse(error, debug=values["debug"].value)
    except KeyboardInterrupt as stopped:
        print("\nsela_tf.train: stopped; the same command continues from the last checkpoint, if there is one", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stopped, _Terminated) else signal.SIGINT)
    print(
        f"\n{table(results)}\n\nThe run lies in {workdir}: results.json, labels.npz, model.weights.h5, metrics.jsonl, tensorboard/"
    )
    return 0


class _Terminated(KeyboardInterrupt):
    pass


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _refuse(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"sela_tf.train: error: {' '.join(str(getattr(error, 'message', error)).split())}", file=sys.stderr)
    return 2


def _load_tensorflow() -> None:
    """Imports TensorFlow without the lines that its libraries write on loading; they come out if it fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        except BaseException:
            noise.seek(0)
            os.write(before, noise.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
    tf.get_logger().setLevel("ERROR")


def _versions() -> str:
    _load_tensorflow()
    import keras
    import tensorflow as tf

    devices = ", ".join(device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices())
    return f"sela_tf {__version__}, TensorFlow {tf.__version__}, Keras {keras.__version__}, devices {devices}"


if __name__ == "__main__":
    sys.exit(main())
