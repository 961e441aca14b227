"""The run folder: its files, and who may write in it."""
