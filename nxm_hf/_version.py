"""The version of this library."""

from importlib.metadata import version

__version__ = version("nxm-hf")
