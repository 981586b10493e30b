"""The program: flags, commands and sweeps."""
