"""Forecasts of a trained network, and their scores."""
