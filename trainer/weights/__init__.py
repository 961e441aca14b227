"""Trained weights: where they are found, and exports of them."""
