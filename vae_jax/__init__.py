"""vae_jax: variational autoencoders as pure functions of their parameters. Names are imported when first used."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "core": ("Distribution", "Examples", "VAE", "condition", "reparameterize"),
    "distributions": (
        "Bernoulli",
        "Delta",
        "DiagonalGaussian",
        "FullGaussian",
        "bernoulli_log_prob",
        "full_gaussian_log_prob",
        "gaussian_log_prob",
        "kl_analytic",
        "kl_diagonal_gaussians",
        "kl_divergence",
        "kl_gaussians",
        "kl_monte_carlo",
        "kl_standard_normal",
    ),
    "objectives": ("Elbo", "elbo", "importance_bound", "log_weights", "negative_elbo", "negative_iwae"),
    "annealing": ("annealed_log_weights",),
    "update": ("TrainState", "Training", "init_state", "make_train", "make_training", "make_update"),
    "evaluate": ("make_annealed", "make_evaluate", "mutual_information", "summarize"),
    "run.checkpoints": ("load",),
    "config": ("Config",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vae_jax' has no attribute {name!r}")
    return getattr(import_module(f"vae_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """What notebooks complete: the names of `__all__` too, which are not there before their first use."""
    return sorted({*globals(), *__all__} - {"Any", "import_module"})
