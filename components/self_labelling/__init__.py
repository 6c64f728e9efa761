"""From examples to a model and labels, by self-labelling."""
