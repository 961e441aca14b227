"""The configuration: one YAML file, read into checked settings."""

from trainer.config.load import Configuration, load
from trainer.config.settings import Settings

__all__ = ["Configuration", "Settings", "load"]
