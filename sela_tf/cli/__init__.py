"""The command line: flags made from settings, and what all commands share."""
