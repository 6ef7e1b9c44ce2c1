"""Settings as they are for somebody who has other variables, such as those of an environment file."""

import os
from collections.abc import Mapping

from dr_pipelines.settings import Settings, load_settings

__all__ = ["settings_with"]


def settings_with(variables: Mapping[str, str]) -> Settings:
    """What `load_settings` reads where these variables are set as well. Raises ConfigurationError as it does."""
    before = dict(os.environ)
    try:
        os.environ.update(variables)
        return load_settings()
    finally:
        os.environ.clear()
        os.environ.update(before)
