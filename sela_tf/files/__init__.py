"""Writing of files."""
