"""A CUDA device that computes nothing: what a step launches and waits for, seen without a GPU."""
