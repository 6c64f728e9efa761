"""Defaults for a stranger's images: sets of real images, other methods beside SeLa, runs, a table."""
