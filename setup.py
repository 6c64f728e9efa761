"""For those who still call it; everything stands in pyproject.toml."""

from setuptools import setup

setup()
