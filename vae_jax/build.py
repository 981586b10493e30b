"""Turns a config into functions: the VAE and the learning step."""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax import hierarchies, likelihoods, missing, names, networks, posteriors, priors, update
from vae_jax.codes import Codes
from vae_jax.config import Config, differences
from vae_jax.core import VAE, Likelihood, Params, condition, to_float
from vae_jax.data.files import check_memory
from vae_jax.data.inputs import DataInfo, make_prepare
from vae_jax.errors import UserError
from vae_jax.losses import (
    make_evaluation_objective as make_evaluation_objective,
    make_objective,
    split_loss as split_loss,
)
from vae_jax.names import make
from vae_jax.objectives import elbo
from vae_jax.optimizers import make_optimizer, make_schedules
from vae_jax.update import Training
from vae_jax.vae import Parts, join, standardized, standardized_context
from vae_jax.xla import compiling

# The fields that decide what the parameters mean.
MODEL_FIELDS = (
    *(
        "conditional",
        "context",
        "missing",
        "standardize",
        "vae",
        "vae_options",
        "network",
        "network_options",
        "hidden_sizes",
        "activation",
        "latent_dim",
    ),
    *("likelihood", "likelihood_options", "posterior", "posterior_options", "prior", "prior_options"),
    *("hierarchy", "hierarchy_options"),
)
# The names in a line of metrics.jsonl that no metric of an objective may have.
RESERVED = {
    *("loss", "step", "epoch", "split", "skipped", "steps", "seconds", "examples_per_second"),
    *("active_units", "codes_used", "code_perplexity"),
}


def make_vae(config: Config, data: DataInfo) -> VAE:
    """The VAE that `config` describes. Raises UserError if it does not suit the data or does not fit into memory.

    Its `init(key, x)` needs the training examples, [N, *shape], because their average sets the output bias and their
    variance sets the one scale of `gaussian_scalar` or `laplace`.
    """
    vae, code = _build(config, data), names.outside(config)
    if data.scaling:
        vae = standardized(vae, *(jnp.array(part, jnp.float32).reshape(data.shape) for part in data.scaling))
    if data.covariate_scaling:
        vae = standardized_context(vae, *(jnp.array(part, jnp.float32) for part in data.covariate_scaling))
    if code:
        _check_traces(vae, config, data)
        return vae
    try:
        abstract_params(vae, data)
    except (TypeError, ValueError, OverflowError, AssertionError) as error:  # glu raises AssertionError
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"The config makes no model: {reason}. Set other sizes or options.") from None
    return vae


def abstract_params(vae: VAE, data: DataInfo) -> Params:
    """The shapes and types of the parameters, without values. Raises ValueError if this machine cannot hold them."""
    params = jax.eval_shape(vae.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *data.shape), "float32"))
    check_memory(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)), "the parameters take")
    return params


def _check_traces(vae: VAE, config: Config, data: DataInfo) -> None:
    """Raise UserError, with a line of the code from outside, if its VAE does not give the ELBO of two examples."""
    with names.explained(*names.outside(config).values()):
        _eval_shape(elbo, vae, config, data)


def check_objective(config: Config, vae: VAE, data: DataInfo) -> None:
    """Raise UserError if fields conflict, or if an objective from outside does not give a loss and metrics."""
    objective, code = make_objective(config, data.num_train), names.outside(config)
    if not code:
        return
    with names.explained(*code.values()):
        result = _eval_shape(objective, vae, config, data)
    metrics: Any
    loss, metrics = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    numbers = (loss, *metrics.values()) if isinstance(metrics, dict) else ()
    if numbers and not RESERVED & metrics.keys() and all(getattr(a, "shape", None) == () for a in numbers):
        return
    shapes = " ".join(str(jax.tree.map(lambda a: a.shape, result)).split())
    raise UserError(
        f"objective {config.objective} gives {shapes}; expected (loss, metrics): a number and a dict of numbers, with "
        f"other names than {', '.join(sorted(RESERVED))}."
    )


def _eval_shape(function: Callable[..., Any], vae: VAE, config: Config, data: DataInfo) -> Any:
    """The shapes that function(params, key, x, vae) gives for two examples."""
    params, x = abstract_params(vae, data), jax.ShapeDtypeStruct((2, *data.shape), "float32")
    context = jax.ShapeDtypeStruct((2, data.context_size), "float32") if config.conditional else None
    call = lambda params, key, x, c: function(params, key, x, condition(vae, c))  # noqa: E731
    return jax.eval_shape(call, params, jax.random.key(0), x, context)


def without_effect(config: Config, defaults: Config | None = None) -> list[str]:
    """The fields that differ from `defaults`, by default those of Config, and that the code from outside does not take.

    defaults: what the fields have that nobody set.
    """
    changed = differences(config, defaults or Config(), MODEL_FIELDS).keys()
    if config.vae:
        return sorted(changed - {"conditional", "missing", "standardize", "vae", "vae_options"})
    if ":" not in config.network:
        return []
    taken = names.accepted(names.find(config.network), 3)
    return [] if taken is None else sorted(changed & {"hidden_sizes", "activation"} - taken.keys())


def evaluation_options(config: Config) -> dict[str, Any]:
    """Arguments with which `evaluate.make_evaluate` is faster than with its defaults. They change no figure."""
    if jax.default_backend() != "cpu":
        return {}
    jit = partial(compiling.jit, fusions=compiling.PRODUCTS)
    if config.network == "convolutional":  # so few images that their windows stay in the cache
        return {"batch_size": 32, "chunk_size": 4, "jit": jit}
    return {} if config.compute_dtype == "float32" else {"jit": jit}


def _build(config: Config, data: DataInfo) -> VAE:
    shape, latent_dim = data.shape, config.latent_dim
    if config.conditional and not data.context_size:
        raise UserError("conditional is true but the data has no labels. Give some or set --config.conditional=false.")
    if config.context != "both" and (config.hierarchy or not config.conditional):
        raise UserError(
            f"context is {config.context!r}, for a conditional VAE without a hierarchy. Set --config.context=both."
        )
    if config.batch_size > data.num_train:
        raise UserError(
            f"batch_size is {config.batch_size}; expected at most the {data.num_train} training examples. Set "
            f"--config.batch_size={data.num_train}."
        )
    context_size = data.context_size if config.conditional else 0
    check_range(config, data.range, shape)
    if config.vae:
        with names.explained(config.vae):
            vae = names.find(config.vae)(data, **config.vae_options)
        if not isinstance(vae, VAE):
            raise UserError(f"{config.vae} returned a {type(vae).__name__}; expected a vae_jax.VAE.")
        return vae._replace(init=lambda key, x: vae.init(key, to_float(x).astype(jnp.float32)))
    if config.vae_options:
        raise UserError(f"vae_options is {config.vae_options} without a --config.vae. Give one.")
    likelihood = _observed(config, shape)
    posterior = _posterior(config, latent_dim)
    if config.hierarchy and posterior.codes:
        raise UserError(
            f"posterior {config.posterior!r} makes codes, and hierarchy {config.hierarchy!r} joins continuous latents. "
            "Set --config.hierarchy=, or choose another posterior."
        )
    network = _network(config, shape, posterior.num_outputs, likelihood)
    parts = Parts(
        shape,
        *network[:2],
        posterior,
        likelihood,
        priors.standard_normal(latent_dim),  # without a hierarchy, replaced below
        latent_dim,
        context_size,
        network.output_bias if config.output_bias else None,
        config.context,
    )
    if not config.hierarchy:
        if config.hierarchy_options:
            raise UserError(f"hierarchy_options is {config.hierarchy_options} without a --config.hierarchy. Give one.")
        return join(parts._replace(prior=_prior(config, latent_dim, posterior, data.range)))
    hierarchy = make(hierarchies, hierarchies.Hierarchy, config.hierarchy, **config.hierarchy_options)
    if hierarchy.posterior and config.posterior != hierarchy.posterior:
        raise UserError(
            f"hierarchy {config.hierarchy!r} takes posterior={hierarchy.posterior}, and posterior is "
            f"{config.posterior!r}. Set --config.posterior={hierarchy.posterior}, or choose another hierarchy."
        )
    return hierarchy.build(
        hierarchies.Levels(
            parts,
            lambda num_outputs: _network(config, shape, num_outputs, likelihood).encoder,
            partial(_dense, config),
            networks.activations_of(config.activation.split(",")[0], 1)[0],
            partial(_posterior, config),
            lambda dim, **kwargs: _prior(config, dim, _posterior(config, dim), data.range, **kwargs),
        )
    )


def _dense(
    config: Config, shape: tuple[int, ...], encoder_outputs: int, decoder_outputs: int, hidden_sizes: Sequence[int]
) -> networks.Network:
    """The dense layers between two latents."""
    return networks.mlp(
        shape,
        encoder_outputs,
        decoder_outputs,
        hidden_sizes=hidden_sizes,
        activation=config.activation.split(",")[0],
        compute_dtype=config.compute_dtype,
    )


def _posterior(config: Config, latent_dim: int) -> posteriors.Posterior:
    return make(posteriors, posteriors.Posterior, config.posterior, latent_dim, **config.posterior_options)


def make_codes(config: Config) -> Codes | None:
    """What the latents of the VAE of `config` are, if they are discrete; None if not, and for a whole VAE from outside.

    Code from outside that makes the posterior runs.
    """
    return None if config.vae else _posterior(config, config.latent_dim).codes


def _prior(
    config: Config,
    latent_dim: int,
    posterior: posteriors.Posterior,
    value_range: tuple[float, float],
    *,
    encodes_x: bool = True,
) -> priors.Prior:
    codes = posterior.codes
    if codes and config.prior in priors.NAMES and config.prior not in priors.OF_CODES:
        neutral = " --config.prior_options={}" if config.prior_options else ""
        raise UserError(
            f"posterior {config.posterior!r} needs a prior of codes, and prior is {config.prior!r}. Set "
            f"--config.prior=uniform_codes{neutral} or --config.prior=factorized_codes{neutral}"
            f"{', and --config.objective=vq' * (config.posterior == 'vq' != config.objective)}."
        )
    if not codes and config.prior in priors.OF_CODES:
        raise UserError(
            f"prior {config.prior!r} needs a posterior of codes, and posterior is {config.posterior!r}. Set "
            "--config.posterior=fsq or --config.posterior=categorical, or choose another prior."
        )
    prior = make(priors, priors.Prior, config.prior, codes or latent_dim, **config.prior_options)
    if prior.encodes and (config.standardize or config.missing):
        needs = "whole examples, and missing" if config.missing else "data in [0, 1], and standardize"
        raise UserError(f"prior {config.prior!r} needs {needs} is true. Choose another prior.")
    if prior.encodes and not 0 <= value_range[0] <= value_range[1] <= 1:
        low, high = value_range
        raise UserError(
            f"prior {config.prior!r} needs data in [0, 1]; the data lies in [{low:g}, {high:g}]. Choose another prior."
        )
    if prior.encodes and (config.conditional or config.posterior != "diagonal" or not encodes_x):
        raise UserError(
            f"prior {config.prior!r} needs conditional=false, posterior=diagonal and a top latent inferred from x "
            "(no hierarchy, or hvae). Choose another prior."
        )
    return prior


def _network(config: Config, shape: tuple[int, ...], encoder_outputs: int, likelihood: Likelihood) -> networks.Network:
    given = {"hidden_sizes": config.hidden_sizes, "activation": config.activation}
    if config.compute_dtype != "float32":
        given["compute_dtype"] = config.compute_dtype
    if twice := sorted(given.keys() & config.network_options.keys()):
        raise UserError(f"network_options holds {twice[0]}, which has its own setting. Set --config.{twice[0]}.")
    sizes = (encoder_outputs, likelihood.num_outputs)

    def of(shape: tuple[int, ...]) -> networks.Network:
        return make(networks, networks.Network, config.network, shape, *sizes, offered=given, **config.network_options)

    seen = jax.eval_shape(likelihood.features, jax.ShapeDtypeStruct((1, *shape), "float32")).shape[1:]
    return of(shape) if seen == shape else of(shape)._replace(encoder=of(seen).encoder)


def check_range(config: Config, value_range: tuple[float, float], shape: tuple[int, ...]) -> None:
    """Raise UserError if data lies outside the range for which the likelihood, or random binarisation, is defined."""
    cause = "binarization" if config.binarization != "none" else "likelihood"
    likelihood = make_likelihood(config, shape)
    if config.standardize and likelihood and (likelihood.support or likelihood.num_levels):
        raise UserError(
            f"standardize is true, and likelihood {config.likelihood!r} is of values in a range. Choose one of any "
            "numbers, such as --config.likelihood=gaussian_scalar."
        )
    support = (0.0, 1.0) if cause == "binarization" else likelihood and likelihood.support
    if support and not (support[0] <= value_range[0] and value_range[1] <= support[1]):
        low = "(0" if 0 < support[0] < 1e-37 else f"[{support[0]:g}"
        high = "inf)" if support[1] == inf else f"{support[1]:g}]"
        raise UserError(
            f"{cause} {getattr(config, cause)!r} needs data in {low}, {high}; the data lies in "
            f"[{value_range[0]:g}, {value_range[1]:g}]. Rescale it, or choose --config.likelihood=gaussian."
        )


def make_likelihood(config: Config, shape: tuple[int, ...]) -> Likelihood | None:
    """The likelihood of examples of `shape`; None for a whole VAE from outside, which does not tell."""
    return None if config.vae else _likelihood(config, shape)


def _likelihood(config: Config, shape: tuple[int, ...]) -> Likelihood:
    return make(likelihoods, Likelihood, config.likelihood, shape, **config.likelihood_options)


def _observed(config: Config, shape: tuple[int, ...]) -> Likelihood:
    """The likelihood, of the observed values alone if some may be missing."""
    likelihood = _likelihood(config, shape)
    if not config.missing:
        return likelihood
    try:
        return missing.observed(likelihood, shape)
    except ValueError as error:
        raise UserError(
            f"missing is true, and likelihood {config.likelihood!r}: {error}. Choose another one."
        ) from None


def make_training(
    config: Config,
    vae: VAE,
    steps_per_epoch: int,
    learning_rate: Array | float | None = None,
    beta: Array | float | None = None,
    *,
    num_examples: int | None = None,
) -> Training:
    """The functions for the first state and a learning step.

    learning_rate, beta: see `make_optimizer` and `make_schedules`. num_examples: see `make_objective`.
    """
    return update.make_training(
        vae,
        make_objective(config, num_examples),
        make_optimizer(config, steps_per_epoch, learning_rate),
        prepare=make_prepare(config),
        ema_decay=config.ema_decay,
        schedules=make_schedules(config, beta),
        after=_after(config),
    )


def _after(config: Config) -> Callable[..., Any] | None:
    """What an update ends with: that of the posterior, for the parameters of the whole VAE."""
    own = None if config.vae or config.hierarchy else _posterior(config, config.latent_dim).after
    if own is None:
        return None

    def after(key: Array, q: Any, before: Params, params: Params, average: Params | None) -> tuple[Any, Any]:
        inner = None if average is None else average["posterior"]
        changed, averaged = own(key, q, before["posterior"], params["posterior"], inner)
        whole = None if average is None else {**average, "posterior": averaged}
        return {**params, "posterior": changed}, whole

    return after
