"""The network in plain torch, independent of process groups, launchers and DeepSpeed."""
