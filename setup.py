"""Build hook of the native extension; everything else is declared in pyproject.toml.

The package installs and works with no compiler: it has no native sources yet, so there is
nothing to build.
"""

from setuptools import setup

setup()
