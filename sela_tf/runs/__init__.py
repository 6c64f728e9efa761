"""The directory of a run: its files, checkpoints, network and labels."""
