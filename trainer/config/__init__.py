"""One YAML file to checked settings."""

from trainer.config.load import Configuration, load
from trainer.config.settings import Settings

__all__ = ["Configuration", "Settings", "load"]
