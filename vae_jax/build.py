"""Turns a config into functions: the VAE, the objective, the optimiser and the schedules."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from vae_jax import hierarchies, likelihoods, networks, posteriors, priors, update
from vae_jax.config import MAX_STEPS, Config, make, unknown
from vae_jax.core import VAE, Params
from vae_jax.data.files import check_memory
from vae_jax.data.inputs import DataInfo, make_prepare
from vae_jax.distributions import kl_by_dimension
from vae_jax.errors import UserError
from vae_jax.objectives import negative_elbo, negative_iwae
from vae_jax.update import Training
from vae_jax.vae import Parts, join
from vae_jax.xla import compiling

# The fields that decide what the parameters mean.
MODEL_FIELDS = (
    *("conditional", "network", "network_options", "hidden_sizes", "activation", "latent_dim"),
    *("likelihood", "likelihood_options", "posterior", "posterior_options", "prior", "prior_options"),
    *("hierarchy", "hierarchy_options"),
)


def make_vae(config: Config, data: DataInfo) -> VAE:
    """The VAE that `config` describes. Raises UserError if it does not suit the data or does not fit into memory.

    Its `init(key, x)` needs the training examples, [N, *shape], because their average sets the output bias and their
    variance sets the sigma of `gaussian_scalar`.
    """
    vae = _build(config, data)
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
    if config.conditional and not data.num_classes:
        raise UserError("conditional is true but the data has no labels. Give some or set --config.conditional=false.")
    if config.batch_size > data.num_train:
        raise UserError(f"batch_size is {config.batch_size}; expected at most the {data.num_train} training examples.")
    context_size = data.num_classes if config.conditional else 0
    likelihood = likelihood_of(config, shape)
    check_range(config, data.range)
    posterior = _posterior(config, latent_dim)
    network = _network(config, shape, posterior, likelihood)
    if not config.hierarchy:
        if config.hierarchy_options:
            raise UserError(f"hierarchy_options is {config.hierarchy_options} without a --config.hierarchy. Give one.")
        parts = Parts(shape, *network, posterior, likelihood, _prior(config, latent_dim), latent_dim, context_size)
        return join(parts, config.output_bias)

    top = make(hierarchies, "Hierarchy", config.hierarchy, **config.hierarchy_options)
    top_posterior, middle = _posterior(config, top.latent_dim), likelihoods.gaussian_pixel((latent_dim,))
    between = networks.mlp(
        (latent_dim,),
        top_posterior.num_outputs,
        middle.num_outputs,
        hidden_sizes=top.hidden_sizes,
        activation=config.activation.split(",")[0],
        compute_dtype=config.compute_dtype,
    )
    encoder = _network(config, shape, top_posterior, likelihood).encoder if top.infers_top_first else between.encoder
    upper = join(
        Parts(
            shape if top.infers_top_first else (latent_dim,),
            encoder,
            between.decoder,
            top_posterior,
            middle,
            _prior(config, top.latent_dim, encodes_x=top.infers_top_first),
            top.latent_dim,
        )
    )
    if not top.infers_top_first:
        init = upper.init
        upper = upper._replace(init=lambda key, x: init(key, jnp.zeros((1, latent_dim))))
    lower_context_size = context_size + (top.latent_dim if top.infers_top_first else 0)
    unused_prior = priors.standard_normal(latent_dim)
    lower = join(
        Parts(shape, *network, posterior, likelihood, unused_prior, latent_dim, lower_context_size), config.output_bias
    )
    return top.join(lower, upper)


def _posterior(config: Config, latent_dim: int) -> posteriors.Posterior:
    return make(posteriors, "Posterior", config.posterior, latent_dim, **config.posterior_options)


def _prior(config: Config, latent_dim: int, *, encodes_x: bool = True) -> priors.Prior:
    prior = make(priors, "Prior", config.prior, latent_dim, **config.prior_options)
    if prior.encodes and (config.conditional or config.posterior != "diagonal" or not encodes_x):
        raise UserError(
            f"prior {config.prior!r} needs conditional=false, posterior=diagonal and a top latent inferred from x "
            "(no hierarchy, or hvae). Choose another prior."
        )
    return prior


def _network(
    config: Config, shape: tuple[int, ...], posterior: posteriors.Posterior, likelihood: likelihoods.Likelihood
) -> networks.Network:
    given = {"hidden_sizes": config.hidden_sizes, "activation": config.activation}
    if config.compute_dtype != "float32":
        given["compute_dtype"] = config.compute_dtype
    if twice := sorted(given.keys() & config.network_options.keys()):
        raise UserError(f"network_options holds {twice[0]}, which has its own setting. Set --config.{twice[0]}.")
    options = {**given, **config.network_options}
    return make(networks, "Network", config.network, shape, posterior.num_outputs, likelihood.num_outputs, **options)


def check_range(config: Config, value_range: tuple[float, float]) -> None:
    """Raise UserError if data lies outside the range for which the likelihood, or random binarisation, is defined."""
    cause = "binarization" if config.binarization != "none" else "likelihood"
    support = (0.0, 1.0) if cause == "binarization" else likelihood_of(config, ()).support
    if support and not (support[0] <= value_range[0] and value_range[1] <= support[1]):
        raise UserError(
            f"{cause} {getattr(config, cause)!r} needs data in [{support[0]:g}, {support[1]:g}]; the data lies in "
            f"[{value_range[0]:g}, {value_range[1]:g}]. Rescale it, or choose --config.likelihood=gaussian."
        )


def num_levels(config: Config) -> int | None:
    """The number of evenly spaced values in [0, 1] that the likelihood allows; None if it allows any value."""
    return likelihood_of(config, ()).num_levels


def likelihood_of(config: Config, shape: tuple[int, ...]) -> likelihoods.Likelihood:
    return make(likelihoods, "Likelihood", config.likelihood, shape, **config.likelihood_options)


def make_objective(config: Config) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The objective of `config`: (params, key, x, vae) -> (loss, metrics). Raises UserError if fields conflict."""
    if config.objective == "iwae":
        weights = {"alpha": 1.0, "beta": 1.0, "beta_warmup_steps": 0, "free_bits": 0.0, "kl": "auto"}
        for name, neutral in weights.items():
            if getattr(config, name) != neutral:
                raise UserError(
                    f"{name} is {getattr(config, name)!r}, which objective 'iwae' does not use. Leave it out."
                )
        if config.estimator == "stl":
            raise UserError("estimator 'stl' is biased for objective 'iwae'. Choose dreg, which is stl at K = 1.")
        return partial(negative_iwae, num_samples=config.num_samples, estimator=config.estimator)
    if config.estimator == "dreg":
        raise UserError("estimator 'dreg' is only for objective 'iwae'. Choose stl for objective 'elbo'.")
    if config.kl != "monte_carlo" and config.estimator == "stl":
        raise UserError("estimator 'stl' needs --config.kl=monte_carlo: a closed form does not compute log q(z | x).")
    if config.kl == "monte_carlo" and config.free_bits:
        raise UserError("free_bits needs --config.kl=auto: the KL of each latent dimension in closed form.")
    gaussian = not config.hierarchy and config.prior == "standard_normal"
    if config.kl == "analytic" and not (gaussian and config.posterior in ("diagonal", "full_covariance")):
        raise UserError(
            "kl 'analytic' needs posterior=diagonal or full_covariance, prior=standard_normal and no hierarchy: no "
            "other KL has a closed form here. Set --config.kl=auto for the closed form of the parts that have one."
        )
    if config.free_bits and not (gaussian and config.posterior == "diagonal"):
        raise UserError(
            f"free_bits is {config.free_bits}, which needs posterior=diagonal, prior=standard_normal and no hierarchy: "
            "the KL of each latent dimension in closed form. Set --config.free_bits=0."
        )
    return partial(
        negative_elbo,
        alpha=config.alpha,
        beta=config.beta,
        num_samples=config.num_samples,
        kl=config.kl,
        estimator=config.estimator,
        free_bits=config.free_bits,
    )


def make_evaluation_objective(config: Config) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The objective of `config`, used for its value on single examples. `split_loss` combines these values.

    With free bits, which are defined on averages over examples, it also gives the KL of each latent dimension.
    """
    estimator = "pathwise" if config.estimator == "dreg" else config.estimator  # dreg has the same value
    objective = make_objective(replace(config, estimator=estimator, free_bits=0.0))
    if not config.free_bits:
        return objective

    def with_dimensions(params: Params, key: Array, x: Array, vae: VAE, **weights: Any):
        loss, metrics = objective(params, key, x, vae, **weights)
        each = kl_by_dimension(vae.encode(params, x), vae.prior(params))
        return loss, metrics | {"kl_by_dimension": jnp.mean(each, 0)}

    return with_dimensions


def split_loss(config: Config, values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The loss and the metrics of a split, from what the objective of `make_evaluation_objective` gives per example.

    values: [N] each, and with free bits also `kl_by_dimension`, [N, L]. The results are averages over the split, except
    the KL in a loss with free bits: it is sum_d max(KL_d, free_bits), where KL_d is averaged over the whole split. In
    training, KL_d is averaged over a batch.
    """
    with np.errstate(invalid="ignore"):  # a mean of infinities of both signs
        means = {name: np.mean(value, axis=0, dtype=np.float64) for name, value in values.items()}
    if config.free_bits:
        each = means.pop("kl_by_dimension")
        means["loss"] += config.beta * np.sum(np.maximum(config.free_bits - each, 0))
    return {name: float(value) for name, value in means.items()}


def make_training(
    config: Config,
    vae: VAE,
    steps_per_epoch: int,
    learning_rate: Array | float | None = None,
    beta: Array | float | None = None,
) -> Training:
    """The functions for the first state and a learning step. learning_rate, beta: see the next two functions."""
    return update.make_training(
        vae,
        make_objective(config),
        make_optimizer(config, steps_per_epoch, learning_rate),
        prepare=make_prepare(config),
        ema_decay=config.ema_decay,
        schedules=make_schedules(config, beta),
    )


def make_optimizer(
    config: Config, steps_per_epoch: int, learning_rate: Array | float | None = None
) -> optax.GradientTransformation:
    """The optax optimiser with the schedule and the clipping that `config` names.

    learning_rate: the peak, in place of the config's; it may be traced, and the first state does not depend on it.
    """
    functions = {name: f for name, f in vars(optax).items() if inspect.isfunction(f) and name[0] != "_"}
    choices = {name for name, f in functions.items() if "learning_rate" in inspect.signature(f).parameters}
    if config.optimizer not in choices:
        raise unknown("optimizer", config.optimizer, tuple(sorted(choices)))
    schedule = make_schedule(config, steps_per_epoch, learning_rate)
    try:
        optimizer = functions[config.optimizer](learning_rate=schedule, **config.optimizer_options)
        weights = jnp.zeros((2, 2))  # an optimiser may accept options with which its first step fails
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            jax.eval_shape(lambda w: optimizer.update(w, optimizer.init(w), w), weights)
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"optimizer {config.optimizer!r} with {config.optimizer_options}: {reason}. Set other options."
        ) from None
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer) if config.clip_norm else optimizer


def make_schedules(config: Config, beta: Array | float | None = None) -> dict[str, optax.Schedule]:
    """The objective's arguments that change over the steps: `beta`, which may rise from 0 (Bowman et al. 2016).

    beta: its final value, in place of the config's; it may be traced.
    """
    if config.beta_warmup_steps:
        return {"beta": optax.linear_schedule(0.0, config.beta if beta is None else beta, config.beta_warmup_steps)}
    return {} if beta is None else {"beta": optax.constant_schedule(beta)}


def make_schedule(config: Config, steps_per_epoch: int, learning_rate: Array | float | None = None) -> optax.Schedule:
    """Step -> learning rate: a linear rise over `warmup_steps`, then constant, a cosine to 0 at the end, or `burda`.

    `burda` takes 3^i epochs at 10^(-i/7) times the peak, for i = 0, 1, ... (Burda et al. 2016, arXiv:1509.00519,
    section 5, who end with i = 7, after 3,280 epochs).
    learning_rate: the peak, in place of the config's; it may be traced.
    """
    total = config.num_epochs * steps_per_epoch
    if total > MAX_STEPS:
        raise UserError(f"num_epochs is {config.num_epochs}; expected at most {MAX_STEPS // steps_per_epoch}.")
    peak = config.learning_rate if learning_rate is None else learning_rate
    if config.warmup_steps >= total:
        raise UserError(f"warmup_steps is {config.warmup_steps}; expected less than the run's {total} steps.")
    stages = [s for i in range(1, 21) if (s := (3**i - 1) // 2 * steps_per_epoch) < total]
    rest: optax.Schedule = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, total - config.warmup_steps),
        "burda": optax.piecewise_constant_schedule(peak, dict.fromkeys(stages, 10 ** (-1 / 7))),
    }[config.schedule]
    if not config.warmup_steps:
        return rest
    rise = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([rise, rest], [config.warmup_steps])
