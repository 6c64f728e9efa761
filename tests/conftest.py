"""The shared fixtures, for the tests of the library and the components."""

import pytest

pytest.register_assert_rewrite("fixtures")

from fixtures import *  # star: pytest finds fixtures by their names in a conftest
from lanes import IS_KERAS_3, WARNINGS_OF_KERAS_2


def pytest_configure(config):
    for warning in [] if IS_KERAS_3 else WARNINGS_OF_KERAS_2:
        config.addinivalue_line("filterwarnings", warning)
