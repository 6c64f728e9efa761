"""What the commands label, probe and export do with a finished run."""
