"""Compiler settings: the one place that knows what XLA does badly."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

PRODUCTS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"  # a library fusion of XLA:CPU


def jit(function: Callable[..., Any], fusions: str = "", **kwargs: Any) -> Any:
    """`jax.jit` for the loops of the evaluation, with the compiler options that they need. Not to be nested.

    fusions: what XLA:CPU may hand to YNNPACK.
    """
    return jax.jit(function, compiler_options=_options(fusions), **kwargs)


@cache
def _options(fusions: str) -> dict[str, str]:
    """Empty where XLA does not know them.

    On CPU, XLA hands sums over pixels, with all that feeds them, to YNNPACK (jax 0.10 to 0.12). Without it an MLP is
    evaluated 1.1 times as fast; it trains as fast or a little faster with it. But it alone takes products of bfloat16:
    XLA's own are of float32. `tests/benchmarks/speed.py` measures it.
    """
    if jax.default_backend() != "cpu":
        return {}
    candidate = {"xla_cpu_experimental_ynn_fusion_type": fusions}
    try:
        jax.jit(lambda: 0, compiler_options=candidate).lower().compile()
    except Exception:  # another version of XLA: it has no such option
        return {}
    return candidate
