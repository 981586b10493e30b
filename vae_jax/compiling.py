"""Compiler settings: the one place that knows what XLA does badly."""

from functools import cache

import jax


@cache
def options() -> dict[str, str]:
    """The `compiler_options` of the jitted loops, empty where XLA does not know them.

    On CPU, XLA hands chains of products and elementwise work to YNNPACK (jax 0.10 to 0.12): the evaluation of a
    784-512-512-50 VAE ran 12 times slower with it. `tests/benchmarks` measures both.
    """
    if jax.default_backend() != "cpu":
        return {}
    candidate = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=candidate).lower().compile()
    except Exception:  # another version of XLA: it has no such option
        return {}
    return candidate
