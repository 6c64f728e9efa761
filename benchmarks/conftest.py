"""The shared fixtures, for the tests of the benchmarks."""

import pytest

pytest.register_assert_rewrite("fixtures")

from fixtures import *  # star: pytest finds fixtures by their names in a conftest
