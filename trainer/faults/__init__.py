"""Detection of faults in a run: signals, skipped steps, slow ranks and hangs."""
