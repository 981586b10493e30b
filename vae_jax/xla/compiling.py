"""The compiler options with which XLA evaluates a VAE faster."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

PRODUCTS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"  # an option of XLA:CPU: give each matrix product to YNNPACK, a library


def jit(function: Callable[..., Any], fusions: str = "", **kwargs: Any) -> Any:
    """`jax.jit` for the loops of the evaluation, with the compiler options that they need. Do not nest it in a jit.

    fusions: the operations that XLA:CPU may hand to the library YNNPACK, such as PRODUCTS; '' for no operation.
    """
    return jax.jit(function, compiler_options=_options(fusions), **kwargs)


@cache
def _options(fusions: str) -> dict[str, str]:
    """The compiler options for `fusions`; empty where XLA does not know them.

    On CPU, XLA (jax 0.10 to 0.12) by default hands sums over pixels, and all that feeds them, to YNNPACK. Without
    YNNPACK, the evaluation of an MLP is 1.1 times as fast, but its training is as fast or a little slower. Only YNNPACK
    multiplies in bfloat16: XLA's own products are in float32. `tests/benchmarks/speed.py` measures these times.
    """
    if jax.default_backend() != "cpu":
        return {}
    candidate = {"xla_cpu_experimental_ynn_fusion_type": fusions}
    try:
        jax.jit(lambda: 0, compiler_options=candidate).lower().compile()
    except Exception:  # another version of XLA: it has no such option
        return {}
    return candidate
