"""The commands label, probe and export, which work with a finished run."""
