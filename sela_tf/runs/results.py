"""The figures of a run on disk, results.json."""

from __future__ import annotations

import pathlib
from typing import Any

from sela_tf.files.json_objects import json_object
from sela_tf.reporting.results_check import check_results
from sela_tf.runs.finished import belongs, read_finished
from sela_tf.runs.names import RESULTS
from sela_tf.settings.fields import ConfigError


def has_results(path: pathlib.Path) -> bool:
    """Tests whether there is a verdict on the network that the run in `path` has finished.

    Raises:
        ConfigError: results.json or network.json is damaged.
    """
    return (path / RESULTS).exists() and belongs(read_results(path), read_finished(path))


def read_results(path: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of results.json of the run in `path`.

    Raises:
        ConfigError: the file is not as `write_results` wrote it.
    """
    try:
        results = json_object((path / RESULTS).read_bytes())
        check_results(results)
    except ValueError as error:
        raise ConfigError(
            f"{path / RESULTS} is damaged ({error}): remove it and repeat the command, which writes it anew"
        ) from error
    return results
