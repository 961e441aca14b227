"""Commands, and how a process learns which rank it is. Thin: the work is in `trainer`."""
