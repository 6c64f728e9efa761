"""Training: a run from its settings to its verdict."""
