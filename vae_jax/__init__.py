"""vae_jax: variational autoencoders as pure functions of their parameters. Names are imported when first used.

Its modules are attributes too: `vae_jax.likelihoods`, `vae_jax.build`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# The names that each module gives. __init__.pyi tells them to type checkers.
_NAMES = {
    "annealing": ("annealed_log_weights",),
    "bounds": ("negative_ciwae", "negative_miwae", "negative_piwae", "negative_renyi", "negative_thermodynamic"),
    "config": ("Config",),
    "core": ("Distribution", "Examples", "Likelihood", "VAE", "condition", "reparameterize"),
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
    "errors": ("UserError",),
    "evaluate": ("make_annealed", "make_evaluate", "make_exact", "make_mutual_information", "summarize"),
    "fitted": ("fit_prior",),
    "generate": ("reconstruct", "sample"),
    "networks": ("Network",),
    "objectives": ("Elbo", "elbo", "importance_bound", "log_weights", "negative_elbo", "negative_iwae"),
    "penalties": ("negative_capacity", "negative_dip", "negative_mmd", "negative_total_correlation", "negative_vq"),
    "posteriors": ("Posterior",),
    "priors": ("Prior",),
    "run.checkpoints": ("load",),
    "run.weights": ("save",),
    "update": ("TrainState", "Training", "init_state", "make_train", "make_training", "make_update"),
}
_MODULES = {*_NAMES, "anomalies", "build", "codebooks", "codes", "flows", "hierarchies", "likelihoods", "vae"} - {
    "run.checkpoints",
    "run.weights",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted({*_HOME, "build"})


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"vae_jax.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"vae_jax.{name}")
    raise AttributeError(f"module 'vae_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names that notebooks complete: also the names that are not imported before their first use."""
    return sorted({*globals(), *__all__, *_MODULES} - {"Any", "import_module"})
