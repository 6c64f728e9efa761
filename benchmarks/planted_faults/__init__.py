"""Planted faults: whether those that are hidden in a set of images are among the first that are shown."""
