"""Turns a config into the objective, what training minimises, and into the value of this objective on a split."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax import bounds, hierarchies, names, penalties, posteriors
from vae_jax.config import Config, check_option
from vae_jax.core import VAE, Params
from vae_jax.distributions import gaussian_log_prob, kl_by_dimension
from vae_jax.errors import UserError
from vae_jax.evaluate import evenly
from vae_jax.objectives import negative_elbo, negative_iwae

Objective = Callable[..., tuple[Array, dict[str, Array]]]  # (params, key, x, vae) -> (loss, metrics)

# The functions that a config can name.
OBJECTIVES: dict[str, Objective] = {
    "elbo": negative_elbo,
    "iwae": negative_iwae,
    "miwae": bounds.negative_miwae,
    "piwae": bounds.negative_piwae,
    "ciwae": bounds.negative_ciwae,
    "renyi": bounds.negative_renyi,
    "thermodynamic": bounds.negative_thermodynamic,
    "capacity": penalties.negative_capacity,
    "total_correlation": penalties.negative_total_correlation,
    "mmd": penalties.negative_mmd,
    "dip": penalties.negative_dip,
    "vq": penalties.negative_vq,
}
WEIGHTED = ("iwae", "miwae", "piwae", "ciwae", "renyi", "thermodynamic")  # of log q(z | x)
ESTIMATORS = {"iwae": "dreg", "thermodynamic": "covariance", "elbo": "stl", "mmd": "stl", "dip": "stl"}  # and pathwise
AGGREGATE = ("total_correlation", "mmd", "dip")  # of the aggregate posterior, and so no average over examples
# The arguments of an objective that are fields of the config. An objective from outside gets those that it takes.
WEIGHTS = ("alpha", "beta", "num_samples", "kl", "estimator", "free_bits")
# Values of the options that have no default, for advice.
EXAMPLES = {"num_groups": 8, "elbo_weight": 0.05, "order": 0.5, "gamma": 100, "capacity": 25, "weight": 100}
EXAMPLES |= {"off_diagonal": 10, "diagonal": 10}
MAX_CODES = 10_000  # of a split, at which the aggregate posterior is evaluated


def make_objective(config: Config, num_examples: int | None = None) -> Objective:
    """The objective of `config`: (params, key, x, vae) -> (loss, metrics). Raises UserError if fields conflict.

    num_examples: of the training split. Only `total_correlation` uses it; without it, that objective cannot be called.
    """
    name = config.objective
    if ":" in name:
        return _objective_from_outside(config)
    function, options = OBJECTIVES[name], _options(config)
    taken = names.accepted(function, 4) or {}
    _check_estimator(config)
    for field in (*WEIGHTS, "beta_warmup_steps"):
        value = getattr(config, field)
        if field.removesuffix("_warmup_steps") not in taken and value != getattr(Config(), field):
            raise UserError(f"{field} is {value!r}, which objective {name!r} does not use. Leave it out.")
    _check_parts(config)
    if name in ("mmd", "total_correlation") and config.batch_size < 2:
        raise UserError(
            f"batch_size is 1, and objective {name!r} compares examples. Set --config.batch_size=2 or more."
        )
    if name == "total_correlation" and num_examples is not None:
        options["num_examples"] = num_examples
    weights = {field: getattr(config, field) for field in WEIGHTS if field in taken}
    return partial(function, **weights, **options)


def _options(config: Config) -> dict[str, Any]:
    """The options of an objective of this package, checked, without `capacity_warmup_steps`, which is of a schedule."""
    name, options = config.objective, dict(config.objective_options)
    parameters = inspect.signature(OBJECTIVES[name]).parameters
    known = {p.name: p for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in WEIGHTS}
    known.pop("num_examples", None)
    kinds = {option: p.annotation for option, p in known.items()}
    kinds |= {"capacity_warmup_steps": int} if name == "capacity" else {}
    for option, value in options.items():
        if option in WEIGHTS:
            raise UserError(f"objective_options holds {option}, which has its own setting. Set --config.{option}.")
        if option not in kinds:
            raise UserError(f"objective {name!r} has no option {option!r}. Its options: {', '.join(kinds) or 'none'}.")
        try:
            check_option(option, value, kinds[option])
        except UserError as error:
            raise UserError(f"objective {name!r}: {error}") from None
        at_least_0 = option in ("gamma", "capacity", "weight", "off_diagonal", "diagonal", "elbo_weight", "commitment")
        if (at_least_0 and value < 0) or (option == "bandwidth" and value <= 0):
            least = "at least 0" if at_least_0 else "a positive number"
            raise UserError(f"objective {name!r}: {option} is {value}; expected {least}.")
        if option == "elbo_weight" and value > 1:
            raise UserError(f"objective {name!r}: elbo_weight is {value}; expected a number from 0 to 1.")
        if option == "points" and not (
            isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)
        ):
            raise UserError(f"objective {name!r}: points is {value!r}; expected numbers, such as [0, 0.1, 0.3].")
        if option == "kind" and value not in penalties.KINDS:
            raise UserError(f"objective {name!r}: kind is {value!r}; expected {' or '.join(penalties.KINDS)}.")
    if missing := [option for option, p in known.items() if p.default is p.empty and option not in options]:
        given = json.dumps(options | {option: EXAMPLES[option] for option in missing})
        raise UserError(
            f"objective {name!r} needs the option{'s' * (len(missing) > 1)} {' and '.join(missing)}. Give "
            f"--config.objective_options='{given}', say."
        )
    if name == "thermodynamic" and not options:
        raise UserError(
            "objective 'thermodynamic' needs the options num_points and smallest, or points. Give "
            """--config.objective_options='{"num_points": 5, "smallest": 0.05}', say."""
        )
    if name == "thermodynamic":
        try:
            bounds.partition(**options)
        except ValueError as error:
            raise UserError(f"objective {name!r}: {error}") from None
    options.pop("capacity_warmup_steps", None)
    return options


def _check_estimator(config: Config) -> None:
    name, estimator = config.objective, config.estimator
    if (name, estimator) == ("iwae", "stl"):
        raise UserError("estimator 'stl' is biased for objective 'iwae'. Choose dreg, which is stl at K = 1.")
    if estimator not in ("pathwise", ESTIMATORS.get(name)):
        owners = ", ".join(repr(owner) for owner, own in ESTIMATORS.items() if own == estimator)
        known = " or ".join([*([ESTIMATORS[name]] if name in ESTIMATORS else []), "pathwise"])
        raise UserError(f"estimator {estimator!r} is only for objective {owners}, not {name!r}. Choose {known}.")
    if config.kl != "monte_carlo" and estimator == "stl":
        raise UserError("estimator 'stl' needs --config.kl=monte_carlo: a closed form does not compute log q(z | x).")
    if estimator == "covariance" and config.num_samples < 2:
        raise UserError("estimator 'covariance' needs at least 2 samples. Set --config.num_samples=2 or more.")


def _check_parts(config: Config) -> None:
    """Raise UserError if the objective is not defined for the posterior, the prior or the hierarchy."""
    name, posterior = config.objective, config.posterior
    if config.kl == "monte_carlo" and config.free_bits:
        raise UserError("free_bits needs --config.kl=auto: the KL of each latent dimension in closed form.")
    if {"vae", "posterior", "prior"} & names.outside(config).keys():  # seen while tracing
        return
    if (name == "vq") != (posterior == "vq"):
        raise _vq_error(config)
    made = names.make(posteriors, posteriors.Posterior, posterior, config.latent_dim, **config.posterior_options)
    if made.relaxed and (name in WEIGHTED or config.kl == "monte_carlo"):
        what = f"objective {name!r}" if name in WEIGHTED else "kl 'monte_carlo'"
        options = json.dumps({**config.posterior_options, "straight_through": True})
        raise UserError(
            f"{what} needs log q(z | x) at samples, which relaxed samples of posterior {posterior!r} do not have. "
            f"Set --config.posterior_options='{options}', whose samples are codes."
        )
    gaussian = not config.hierarchy and config.prior == "standard_normal"
    closed = gaussian and posterior in ("diagonal", "full_covariance")
    if config.kl == "analytic" and not (closed or made.codes):
        raise UserError(
            "kl 'analytic' needs posterior=diagonal or full_covariance, prior=standard_normal and no hierarchy, or a "
            "posterior of codes: no other KL has a closed form here. Set --config.kl=auto for the closed form of the "
            "parts that have one."
        )
    levels = config.hierarchy in hierarchies.TOP_FIRST and config.prior == "standard_normal"
    if config.free_bits and not ((gaussian or levels) and posterior == "diagonal"):
        raise UserError(
            f"free_bits is {config.free_bits}, which needs posterior=diagonal, prior=standard_normal and no hierarchy, "
            f"or one of {' and '.join(hierarchies.TOP_FIRST)}: the KL of each latent dimension, or of each level, in "
            "closed form. Set --config.free_bits=0."
        )
    if name in WEIGHTED and posterior == "delta":
        raise UserError(f"posterior 'delta' has no density, which objective {name!r} needs. Choose another posterior.")
    allowed = {
        "capacity": ("diagonal", "full_covariance"),
        "total_correlation": ("diagonal",),
        "mmd": ("delta", "diagonal", "flow", "full_covariance"),
        "dip": ("diagonal",),
    }.get(name)
    if allowed and not (gaussian and posterior in allowed):
        raise UserError(
            f"objective {name!r} needs posterior={' or '.join(allowed)}, prior=standard_normal and no hierarchy. "
            "Choose these, or another objective."
        )


def _vq_error(config: Config) -> UserError:
    if config.posterior == "vq":
        # What the objective does not use has its default.
        unused = ("num_samples", "kl", "estimator", "free_bits", "objective_options")
        others = {
            field: getattr(Config(), field) for field in unused if getattr(config, field) != getattr(Config(), field)
        }
        flags = "".join(f" --config.{field}={value}" for field, value in others.items())
        return UserError(
            f"objective {config.objective!r} would never train the codebook of posterior 'vq'. Set "
            f"--config.objective=vq{flags}."
        )
    return UserError(
        f"objective 'vq' trains the codebook of posterior 'vq', and posterior is {config.posterior!r}. Set "
        "--config.posterior=vq --config.prior=uniform_codes, or choose another objective."
    )


def _objective_from_outside(config: Config) -> Callable[..., tuple[Array, dict[str, Array]]]:
    function = names.find(config.objective)
    taken = names.accepted(function, 4) if callable(function) else {}
    for name in (*WEIGHTS, "beta_warmup_steps"):
        argument, value = name.removesuffix("_warmup_steps"), getattr(config, name)
        if taken is not None and argument not in taken and value != getattr(Config(), name):
            raise UserError(f"{name} is {value!r}, and {config.objective} does not take {argument!r}. Leave it out.")
    for option in config.objective_options:
        if option in WEIGHTS or (taken is not None and option not in taken):
            known = ", ".join((taken or {}).keys() - {*WEIGHTS}) or "none"
            raise UserError(f"objective {config.objective} has no option {option!r}. Its options: {known}.")
    weights = {name: getattr(config, name) for name in WEIGHTS if taken is not None and name in taken}
    return partial(function, **weights, **config.objective_options)


def make_evaluation_objective(config: Config) -> Objective:
    """The objective of `config`, used for its value on single examples. `split_loss` combines these values.

    With free bits, which are defined on averages over examples, it also gives `kl_terms`: the KL of each latent
    dimension, or of each level of a hierarchy. The objectives of the aggregate posterior are the ELBO here, with their
    alpha, beta and KL, and `codes` besides.
    """
    estimator = config.estimator if config.estimator == "stl" else "pathwise"  # the others have its value
    plain = replace(config, estimator=estimator, free_bits=0.0)
    if config.objective in AGGREGATE:
        kl = "monte_carlo" if config.objective == "total_correlation" else config.kl
        plain = replace(plain, objective="elbo", objective_options={}, kl=kl)
    objective = make_objective(plain)
    if ":" in config.objective or not (config.free_bits or config.objective in AGGREGATE):
        return objective

    def with_codes(params: Params, key: Array, x: Array, vae: VAE, **weights: Any):
        loss, metrics = objective(params, key, x, vae, **weights)
        if config.objective in AGGREGATE:
            codes = penalties.codes(params, key, x, vae, config.num_samples)
            return loss, metrics | {"codes": jax.tree.map(lambda a: a[0], codes)}
        q = vae.encode(params, x)
        if hasattr(q, "kl_by_level"):
            return loss, metrics | {"kl_terms": jnp.stack([metrics[f"kl_{name}"] for name in q.names])}
        return loss, metrics | {"kl_terms": jnp.mean(kl_by_dimension(q, vae.prior(params)), 0)}

    return with_codes


def split_loss(config: Config, values: Mapping[str, Any]) -> dict[str, float]:
    """The loss and the metrics of a split, from what the objective of `make_evaluation_objective` gives per example.

    values: [N] each, with free bits also `kl_terms`, [N, T], and for an objective of the aggregate posterior
    also `codes`. The results are averages over the split, except

    - the KL in a loss with free bits: it is sum_d max(KL_d, free_bits), where the term KL_d is averaged over the whole
      split. In training, it is averaged over a batch.
    - the penalties on the aggregate posterior: q(z) is that of the whole split, without an estimate of its density. In
      training, it is estimated from a batch. The total correlation and the mutual information are averages over the z,
      and the MMD is between the z, of at most 10,000 examples, evenly spaced over the split. The MMD of one example is
      NaN.
    """
    values = dict(values)
    codes = values.pop("codes", None)
    with np.errstate(invalid="ignore"):  # a mean of infinities of both signs
        means = {name: np.mean(value, axis=0, dtype=np.float64) for name, value in values.items()}
    if "kl_terms" in means:
        each = means.pop("kl_terms")
        means["loss"] += config.beta * np.sum(np.maximum(config.free_bits - each, 0))
    if codes is not None:
        means |= _with_penalty(config, means, codes)
    return {name: float(value) for name, value in means.items()}


def _with_penalty(config: Config, means: Mapping[str, Any], codes: penalties.Codes) -> dict[str, Any]:
    """The loss of a split and its penalty, from the averages of the ELBO's terms and the codes of all examples."""
    options, few = _options(config), evenly(len(codes.mean), MAX_CODES)
    if config.objective == "dip":
        penalty = penalties.dip(jnp.asarray(codes.mean), jnp.asarray(codes.log_var), **{"kind": "ii"} | options)
        return {"loss": means["loss"] + penalty, "dip": penalty}
    if config.objective == "mmd":
        if len(few) < 2:
            return {"loss": np.nan, "mmd": np.nan}
        distance = _split_mmd(codes.z[few, 0], codes.p_z[few], options.get("bandwidth", 1.0))
        return {"loss": means["loss"] + options["weight"] * distance, "mmd": distance}
    parts = jax.tree.map(lambda a: np.mean(np.asarray(a), dtype=np.float64), _split_decomposition(codes, few))
    rest = means["kl"] - parts.mutual_information - parts.total_correlation
    # The loss so far holds beta times the KL.
    loss = means["loss"] + (1 - config.beta) * (means["kl"] - parts.total_correlation)
    return {"loss": loss, **parts._replace(dimension_wise_kl=rest)._asdict()}


def _in_turn(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.vmap(function)` in the memory of a few rows."""
    return lambda rows: jax.lax.map(function, rows, batch_size=16)


@jax.jit
def _split_mmd(z: Array, p_z: Array, bandwidth: Array) -> Array:
    return penalties.mmd(z, p_z, bandwidth, _in_turn)


@jax.jit
def _split_decomposition(codes: penalties.Codes, few: Array) -> penalties.Decomposition:
    """The decomposition at the z of the examples `few`, up to -log p(z) in its last term."""
    num, size = codes.mean.shape
    z, mean, log_var = codes.z[few], codes.mean[few][:, None], codes.log_var[few][:, None]
    log_q = jnp.sum(gaussian_log_prob(z, mean, log_var), -1).reshape(-1)
    log_weights = jnp.full((len(log_q), 1), -np.log(num), z.dtype)
    return penalties.decompose(
        z.reshape(-1, size), log_q, jnp.zeros_like(log_q), codes.mean, codes.log_var, log_weights, _in_turn
    )
