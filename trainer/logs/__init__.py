"""The output of a run while it trains: log lines, progress and metrics."""
