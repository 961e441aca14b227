"""Checkpoints: which ranges of tensors each rank writes, and how a folder of them is committed."""
