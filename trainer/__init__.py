"""Training: configuration, data, engine, loop, checkpoints, evaluation."""
