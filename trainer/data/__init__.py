"""Series, their windows, and batches of them."""

from trainer.data.dataset import Dataset, Split
from trainer.data.tables import Series

__all__ = ["Dataset", "Series", "Split"]
