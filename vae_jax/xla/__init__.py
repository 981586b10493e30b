"""Everything specific to XLA: faster convolutions and matrix products, compiler options, many devices."""
