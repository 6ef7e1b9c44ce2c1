"""The same machine and hotel as the assets' tests have."""

from tests.assets.conftest import hotel, machine

__all__ = ["hotel", "machine"]
