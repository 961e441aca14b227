"""The adapter to DeepSpeed: one face for all layouts."""
