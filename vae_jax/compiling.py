"""Compiler settings: the one place that knows what XLA does badly."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax


def jit(function: Callable[..., Any], **kwargs: Any) -> Any:
    """`jax.jit` for the loops of the evaluation, with the compiler options that they need. Not to be nested."""
    return jax.jit(function, compiler_options=_options(), **kwargs)


@cache
def _options() -> dict[str, str]:
    """Empty where XLA does not know them.

    On CPU, XLA hands sums over pixels, with all that feeds them, to YNNPACK (jax 0.10 to 0.12). Without it an MLP is
    evaluated 1.1 times as fast; it trains as fast or a little faster with it. `tests/benchmarks/speed.py` measures it.
    """
    if jax.default_backend() != "cpu":
        return {}
    candidate = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=candidate).lower().compile()
    except Exception:  # another version of XLA: it has no such option
        return {}
    return candidate
