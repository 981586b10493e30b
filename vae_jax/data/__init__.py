"""Load data sets, by name or from the user's own files, as arrays that a model can train on."""
