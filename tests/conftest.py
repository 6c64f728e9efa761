"""The shared fixtures, for the tests of the library and the components."""

import pytest

pytest.register_assert_rewrite("fixtures")

from fixtures import *  # star: pytest finds fixtures by their names in a conftest
