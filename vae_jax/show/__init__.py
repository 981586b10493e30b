"""Show what a run has learned as pictures or as one web page, and export it as one file that needs only jax."""
