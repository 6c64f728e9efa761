"""The check of what results.json holds: all that tables and pages show of it can be shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sela_tf.reporting.changes import changes_table
from sela_tf.reporting.tables import report_figures, report_table, results_table
from sela_tf.reporting.verdict import many_clusters_note, verdict_line

_OBJECTS = ("trained", "untrained", "chance", "config", "data")
"""Objects that results.json always holds."""


def check_results(results: Mapping[str, Any]) -> None:
    """Checks the contents of results.json, also of older runs, by making all that is made of them.

    Raises:
        ValueError: A key is missing, or has a value of another kind.
    """
    for name in _OBJECTS:
        if not isinstance(results.get(name), dict):
            raise ValueError(f"no object {name!r}")
    config = results["config"]
    for name in ("epochs", "num_clusters"):
        if not isinstance(config.get(name), int):
            raise ValueError(f"config has no whole number {name!r}")
    if not isinstance(config.get("evaluate", ""), str):
        raise ValueError("config has no word 'evaluate'")
    try:
        for show in (results_table, report_table, report_figures, verdict_line, many_clusters_note):
            show(results)
        if "continued" in results:
            changes_table(results["continued"])
    except KeyError as error:
        raise ValueError(f"no key {error}") from error
    except (TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"a value of another kind: {error}") from error
