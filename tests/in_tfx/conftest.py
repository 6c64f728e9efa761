"""These tests run in the environment of `make test-tfx` alone."""

import importlib.util

collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("tfx") is None else []


def pytest_configure(config):
    # TFX and what it stands on warn of each other on every import.
    config.addinivalue_line("filterwarnings", "ignore")
