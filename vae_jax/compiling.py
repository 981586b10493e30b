"""Compiler settings: the one place that knows what XLA does badly."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax


def jit(function: Callable[..., Any], **kwargs: Any) -> Any:
    """`jax.jit` for the loops that run long, with the compiler options that they need. Not to be nested in a jit."""
    return jax.jit(function, compiler_options=_options(), **kwargs)


@cache
def _options() -> dict[str, str]:
    """Empty where XLA does not know them.

    On CPU, XLA hands sums over pixels, with all that feeds them, to YNNPACK (jax 0.10 to 0.12). That takes nearly
    three times the processor time in the evaluation of an MLP and a third more in its training; convolutions lose 7 %
    without it. `tests/benchmarks/speed.py` measures both.
    """
    if jax.default_backend() != "cpu":
        return {}
    candidate = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=candidate).lower().compile()
    except Exception:  # another version of XLA: it has no such option
        return {}
    return candidate
