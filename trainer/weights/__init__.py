"""Trained weights, wherever they lie, and exports of them."""
