"""The command-line program: its flags, commands and sweeps."""
