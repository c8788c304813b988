"""What both stages share: records that cross borders, the manifest, the feature store, the console."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("aqa")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
