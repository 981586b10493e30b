"""A run: its directory, checkpoints and metrics, and the training of many members."""
