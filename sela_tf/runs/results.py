"""The figures of a run on disk, results.json."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from sela_tf.runs.names import RESULTS
from sela_tf.settings.fields import ConfigError


def read_results(path: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of results.json of the run in `path`.

    Raises:
        ConfigError: the file is not as `write_results` wrote it.
    """
    try:
        results = json.loads((path / RESULTS).read_text())
        wanted = {"trained", "untrained", "chance", "config", "data"}
        if not isinstance(results, dict) or not wanted <= set(results) or not all(isinstance(results[key], dict) for key in wanted):
            raise ValueError("keys are missing")
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path / RESULTS} is damaged ({error}): remove it and repeat the command, which writes it anew"
        ) from error
    return results
