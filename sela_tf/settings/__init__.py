"""The settings of each command: one frozen dataclass each, every number once."""
