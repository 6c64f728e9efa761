"""The verdict on a run in a sentence, from the contents of results.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sela_tf.reporting.metric_labels import METRIC_LABELS

MANY_CLUSTERS = 2
"""Clusters a class above which accuracies of a one-to-one matching, and ARI, say little about a clustering."""

_REFERENCES = {"untrained": "the untrained network's", "raw_pixels": "that of raw pixels"}
_VIEWS = {
    "view_agreement": "two views of an image fall into the same cluster (adjusted mutual information",
    "neighbour_stability": "have the same nearest training images (share above chance",
}


def verdict_line(results: Mapping[str, Any]) -> str:
    """Returns one line for a stranger: is the network better than what costs nothing, and are the clusters in use?

    Args:
        results: the contents of results.json, also of runs that were made before there were intervals.
    """
    trained = results["trained"]
    if trained["clusters_used"] is None:
        return trained["reason"]
    used = f"{min(trained['clusters_used'])} of {results['config']['num_clusters']} clusters in use on held-out images"
    if trained["knn"] is not None:
        return f"{_by_classes(results)}; {used}"
    if "without_classes" not in results:
        return f"{used}; no class labels to judge by"
    return f"{_by_views(results)}; {used}"


def shown_metrics(results: Mapping[str, Any]) -> list[str]:
    """Returns the metrics that tables show, by their key in results.json; `many_clusters_note` says which are left out."""
    hidden = ("ari", "hungarian") if many_clusters_note(results) else ()
    return [key for key in METRIC_LABELS if key not in hidden]


def chance_figures(results: Mapping[str, Any], key: str) -> Any:
    """Returns a figure of chance: of clusters, that of the trained network's own sizes where it was measured."""
    found = results.get("random_clusters", {}).get(key)
    return results["chance"][key] if found is None else found


def many_clusters_note(results: Mapping[str, Any]) -> str:
    """Returns the reason why ARI and Hungarian accuracy are not shown, where there are far more clusters than classes; else ""."""
    num_clusters, num_classes = results.get("config", {}).get("num_clusters"), results.get("data", {}).get("num_classes")
    if not num_clusters or not num_classes or num_clusters <= MANY_CLUSTERS * num_classes:
        return ""
    return (
        f"K = {num_clusters} clusters for {num_classes} classes: even clusters of one class each, of equal sizes, have a Hungarian accuracy of "
        f"about {num_classes / num_clusters:.2f} and a low ARI, so that both are left out here; results.json has them."
    )


def _by_classes(results: Mapping[str, Any]) -> str:
    """Returns the verdict where there are classes."""
    trained, untrained, chance = (results[name] for name in ("trained", "untrained", "chance"))
    compared = results.get("compared")
    said = [f"kNN {trained['knn']:.3f}{_half(results, 'knn')}"]
    for name, whose in _REFERENCES.items():
        if compared and "knn" in compared[name]:
            said.append(f"{_outcome(compared[name]['knn']['outcome'])} {whose} {_reference(results, name, 'knn')}")
    if not compared:
        said.append(f"the untrained network's {untrained['knn']:.3f}")
    key = "ami" if compared else "nmi"
    agreement = f"{key.upper()} {np.mean(trained[key]):.3f}"
    if compared:
        agreement += ", " + ", ".join(
            f"{_outcome(compared[name][key]['outcome'])} {whose} {_reference(results, name, key)}"
            for name, whose in _REFERENCES.items()
        )
    else:
        agreement += f" against {np.mean(untrained[key]):.3f}"
    return f"{', '.join(said)} (chance {chance['knn']:.3f}); {agreement}"


def _by_views(results: Mapping[str, Any]) -> str:
    """Returns the verdict where there are no classes."""
    without = results["without_classes"]
    measured = " and ".join(
        f"{words} {without['trained'][name]:.3f}{_half(results, name)}; untrained network {without['untrained'][name]:.3f}, raw pixels "
        f"{without['raw_pixels'][name]:.3f})"
        for name, words in _VIEWS.items()
    )
    opening = f"It {without['outcome']}" if without["outcome"] != "not clear" else "It is not clear"
    reason = f"{without['reason']}. Measured: " if without["reason"] else ""
    return f"{opening}: {reason}{measured}"


def _reference(results: Mapping[str, Any], name: str, key: str) -> str:
    return f"{np.mean(results[name][key]):.3f}"


def _outcome(outcome: str) -> str:
    """Returns the outcome of a comparison in words that a figure follows."""
    return {"better": "better than", "worse": "WORSE THAN"}.get(outcome, "no difference seen to")


def _half(results: Mapping[str, Any], key: str) -> str:
    """Returns half the width of the interval of a trained network's figure, as " ± 0.012"; "" where there is none."""
    interval = results.get("intervals", {}).get("trained", {}).get(key)
    return f" ± {(interval[1] - interval[0]) / 2:.3f}" if interval else ""
