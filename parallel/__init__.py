"""How a network is spread over ranks."""
