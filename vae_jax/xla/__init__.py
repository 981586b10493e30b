"""Everything specific to XLA: faster convolutions, matrix products and loops, compiler options, many devices."""
