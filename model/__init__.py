"""The network, in plain torch: it knows no process group, no launcher and no DeepSpeed."""
