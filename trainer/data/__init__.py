"""The series: what is read, prepared and kept, and the windows that a run sees of it."""

from trainer.data.dataset import Dataset
from trainer.data.windows import Split

__all__ = ["Dataset", "Split"]
