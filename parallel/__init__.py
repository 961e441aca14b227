"""How a network is parallelized over ranks."""
