"""Series that are made: each a pure function of a seed and its number."""
