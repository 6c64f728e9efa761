"""Names of the layers of a network that other code refers to; they are also the names of its outputs."""

from __future__ import annotations

EMBEDDING = "embedding"
"""The layer whose output [B, D] is the representation that is evaluated and exported: the backbone's pooled features, or the last of its
fully connected layers."""

HIDDEN = "hidden"
"""The optional hidden layer between the embedding and the heads, [B, hidden_units]."""

NORMALIZATION = "normalization"
"""The layer that normalises the pixels."""
HEADS = "heads"
"""The MultiHead layer, with logits [B, T, K]."""

ROTATION = "rotation"
"""The layer that classifies the quarter turns of an image, with logits [B, 4]."""
