"""Packages of the wheel: the library, and its recipes, which lie in configs/ here and in sela_tf/configs there. pyproject.toml has the rest."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sela_tf", "sela_tf.*"]), "sela_tf.configs", "sela_tf.configs.probes"],
    package_dir={"sela_tf.configs": "configs", "sela_tf.configs.probes": "configs/probes"},
)
