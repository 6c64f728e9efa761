"""The check of a network's description, as network.json has it, before a network is built by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LEAST = {"num_heads": 1, "num_clusters": 1, "width": 0, "hidden_units": 0}
"""The least of the numbers of a description."""
_MOST = 2**31
"""The most of any of its numbers: what is larger is a mistake."""
_PRECISIONS = (None, "mixed_float16", "mixed_bfloat16")
_RULES = {"background", "largest", "shorter_side"}


def check_description(network: Mapping[str, Any]) -> None:
    """Checks the types and ranges of a network's description.

    Args:
        network: The fields of a `NetworkDescription`, as JSON has them.

    Raises:
        ValueError: One is missing or unknown, or has another type or range; the message names it and its value.
    """
    wanted = {"backbone", "image_shape", "mean", "variance", "synchronized", "dtype", *_LEAST}
    if not wanted <= set(network) <= wanted | {"pixel_rules"}:
        odd = sorted(set(network) ^ wanted)
        raise ValueError(f"{odd[0]!r} is missing, or is nothing that describes a network")
    _require(network, "backbone", isinstance(network["backbone"], str), "the name of a backbone")
    _require(network, "synchronized", isinstance(network["synchronized"], bool), "true or false")
    _require(network, "dtype", network["dtype"] is None or network["dtype"] in _PRECISIONS[1:], "null or a mixed precision")
    for name, least in _LEAST.items():
        _require(network, name, _is_whole(network[name], least), f"a whole number from {least}")
    shape = network["image_shape"]
    is_shape = isinstance(shape, list | tuple) and len(shape) in (1, 3) and all(_is_whole(side, 1) for side in shape)
    _require(network, "image_shape", is_shape, "[height, width, channels] or [values]")
    for name in ("mean", "variance"):
        values = network[name]
        is_right = isinstance(values, list | tuple) and len(values) == shape[-1] and all(map(_is_finite, values))
        _require(network, name, is_right, f"{shape[-1]} finite numbers")
    _require(network, "variance", min(network["variance"]) > 0, "positive numbers")
    if "pixel_rules" in network:
        _check_rules(network)


def _check_rules(network: Mapping[str, Any]) -> None:
    """Checks the pixel rules of a description."""
    rules = network["pixel_rules"]
    _require(network, "pixel_rules", isinstance(rules, dict) and {"background", "largest"} <= set(rules) <= _RULES, "pixel rules")
    colour = rules["background"]
    is_colour = isinstance(colour, list | tuple) and len(colour) == 3 and all(_is_whole(each, 0) and each < 256 for each in colour)
    is_right = is_colour and _is_whole(rules["largest"], 1) and _is_whole(rules.get("shorter_side", 0), 0)
    _require(network, "pixel_rules", is_right, "a colour and two whole numbers")


def _require(network: Mapping[str, Any], name: str, is_right: bool, what: str) -> None:
    if not is_right:
        raise ValueError(f"{name} must be {what}. Received: {str(network[name])[:100]}")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _MOST


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
