"""Checkpoints: what is stored of a tensor, and how a folder of it becomes trusted."""
