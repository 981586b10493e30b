"""What a run has learned, as pictures, as one page and as one file that needs only jax."""
