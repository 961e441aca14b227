"""Exports: weights for others, in the shape that model hubs take."""
