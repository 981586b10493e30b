"""Train one run or many side by side, and keep their directories, checkpoints and metrics."""
