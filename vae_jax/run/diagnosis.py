"""Say in words what the figures of a run mean where they surprise, and which flag helps. The functions are pure."""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite, prod
from typing import Any

import jax.numpy as jnp
from jax import Array

from vae_jax import build, priors
from vae_jax.config import Config
from vae_jax.data.inputs import DataInfo
from vae_jax.data.scaling import MAX_ELEMENTS
from vae_jax.errors import UserError
from vae_jax.guard import Guard, describe

LARGE = 30.0  # data beyond it is worth a word if updates were skipped: standardised data rarely goes so far
FAR = 2.0  # nats of KL(q(z) || p(z)), whose estimate may be a nat too high, as log N bounds the information
MIN_EXAMPLES = 10  # the posterior means of fewer examples may agree by chance, and those of one example always do
FEW_STEPS = 1000  # before so many, z may not have been learned yet: Adam moves a weight by at most 1 in them at 1e-3


def notes(
    config: Config, data: DataInfo, figures: Mapping[str, Any], x: Array, *, skipped: int = 0, is_own: bool = True
) -> dict[str, str]:
    """What deserves a word about a trained run: at most one short text per condition, by the name of the condition.

    figures: a record of metrics.jsonl, or what the command evaluate finds; figures in nats per example. x: the examples
    that they are of, [N, *shape], as the model sees them. skipped: the number of skipped updates. is_own: whether x is
    of the data that the run was trained on; if not, nothing is said about the training.
    """
    found = {"density": _density(config, data, figures), "grey": _grey(config, x)}
    if is_own:
        found |= {
            "collapse": _collapse(config, data, figures, x),
            "aggregate": _aggregate(config, data, figures),
            "scale": _scale(config, data, skipped),
        }
    return {name: text for name, text in found.items() if text}


def lost_error(guard: Guard, config: Config, data: DataInfo, num_steps: int, saved: bool) -> UserError:
    """The error of a lost run, with advice. saved: whether it has a checkpoint."""
    advice = [_scale_advice(config, data)] if _is_large(config, data) else []
    if guard.step:
        settings = [f"a learning rate below {config.learning_rate:g}"]
        if not 0 < config.clip_norm <= 1:
            settings.append("--config.clip_norm=1")
        if config.warmup_steps < num_steps // 10:
            settings.append(f"--config.warmup_steps={num_steps // 10}")
        advice.append(f"Give {' or '.join(settings)}.")
    elif not advice:
        advice.append("No update had been made. Choose another likelihood, other options of it, or other data.")
    if saved:
        advice.append("Give --restart too, which moves this run aside.")
    return UserError(f"The run is lost: {describe(guard)}. {' '.join(advice)}")


def _collapse(config: Config, data: DataInfo, figures: Mapping[str, Any], x: Array) -> str:
    """Whether no latent dimension is active, where `evaluate.active_units` says much: not under a learned prior."""
    plain = config.prior == "standard_normal" and config.posterior in ("diagonal", "full_covariance")
    shown = [figures[name] for name in ("nll", "loss", "elbo", "kl") if name in figures]
    if config.vae or config.hierarchy or not plain or figures.get("active_units") != 0 or len(x) < MIN_EXAMPLES:
        return ""
    if not all(value is not None and isfinite(value) for value in shown):  # the means may not be finite either
        return ""
    kl = f" (KL {figures['kl']:.2g})" if "kl" in figures else ""
    return (
        f"Posterior collapse: 0 of {config.latent_dim} latent dimensions are active{kl}, so z says nothing about x. "
        f"Train anew with {_or(_against_collapse(config, data, x))}."
    )


def _against_collapse(config: Config, data: DataInfo, x: Array) -> list[str]:
    """What may help, or what alone helps if the collapsed posterior is the best one for such a sigma or beta."""
    learned_sigma = {"likelihood": "gaussian_scalar", "likelihood_options": {}}
    if _is_wide(config, x) and _fits(config, data, **learned_sigma):
        return [_flags(config, **learned_sigma)]
    if config.beta > 1:
        return ["--config.beta=1"]
    num_steps = config.num_epochs * (data.num_train // config.batch_size)
    changes: list[dict[str, Any]] = [{"beta": config.beta / 2}] if config.beta else []
    if config.beta and not config.beta_warmup_steps and num_steps > 1:
        changes.append({"beta_warmup_steps": num_steps // 2})
    if not config.free_bits:
        changes.append({"free_bits": 0.1})
    longer = ["more epochs (--config.num_epochs)"] if num_steps < FEW_STEPS else []
    smaller = "a smaller decoder" + (" (--config.hidden_sizes)" if config.network == "mlp" else "")
    return [*longer, *(_flags(config, **change) for change in changes if _fits(config, data, **change)), smaller]


def _is_wide(config: Config, x: Array) -> bool:
    """Whether the fixed sigma^2 of a Gaussian likelihood is above twice the variance of x: then nothing pays a KL."""
    if config.likelihood != "gaussian" or config.standardize:
        return False
    return float(jnp.mean(jnp.var(x, 0))) < config.likelihood_options.get("sigma", 1.0) ** 2 / 2


def _aggregate(config: Config, data: DataInfo, figures: Mapping[str, Any]) -> str:
    """Whether q(z), averaged over x, is far from N(0, I). See Hoffman & Johnson 2016 (ELBO surgery), equation 5."""
    distance = figures.get("kl_aggregate")
    if config.vae or config.hierarchy or config.prior != "standard_normal" or distance is None or not distance > FAR:
        return ""
    neutral: dict[str, Any] = {"free_bits": 0.0, "kl": "auto" if config.kl == "analytic" else config.kl}
    changes = [{"prior": name, **neutral} for name in priors.NAMES if name != config.prior]
    fitting = [_flags(config, **change) for change in changes if _fits(config, data, **change)]
    if not fitting:
        return ""
    return (
        f"The aggregate posterior q(z) is {distance:.2f} nats from the prior (kl_aggregate, of a KL of "
        f"{figures['kl']:.2f}): a prior that learns q(z) may gain up to this much. Train anew with {_or(fitting)}."
    )


def _density(config: Config, data: DataInfo, figures: Mapping[str, Any]) -> str:
    name = "nll" if "nll" in figures else "loss"
    value, likelihood = figures.get(name), build.make_likelihood(config, data.shape)
    if value is None or not -float("inf") < value < 0 or not likelihood or likelihood.whole or likelihood.num_levels:
        return ""
    own_loss = name == "loss" and ":" in config.objective and not (figures.get("log_likelihood") or 0) > 0
    if config.likelihood == "bernoulli" or own_loss:
        return ""
    return (
        f"The {name.replace('nll', 'NLL')} is {value:.2f}, below 0: this is right for a density, which may exceed 1. "
        "It depends on the scale of the data, so compare it only with figures of data on the same scale."
    )


def _grey(config: Config, x: Array) -> str:
    if config.vae or config.likelihood != "bernoulli":
        return ""
    share = float(jnp.mean((x > 0) & (x < 1)))
    if not share:
        return ""
    remedies = [_flags(config, binarization="dynamic"), _flags(config, likelihood="continuous_bernoulli")]
    return (
        f"Bernoulli of grey values (a share of {share:.2g} is neither 0 nor 1) is a cross-entropy, not a "
        f"log-likelihood: compare with grey figures only. {_or(remedies)} gives a likelihood."
    )


def _scale(config: Config, data: DataInfo, skipped: int) -> str:
    if not skipped or not _is_large(config, data):
        return ""
    return f"{skipped} updates were skipped because they were not finite. {_scale_advice(config, data)}"


def _is_large(config: Config, data: DataInfo) -> bool:
    return not config.standardize and max(map(abs, data.range)) > LARGE


def _scale_advice(config: Config, data: DataInfo) -> str:
    low, high = data.range
    said = f"The data goes from {low:g} to {high:g}."
    if prod(data.shape) > MAX_ELEMENTS:  # more than `standardize` takes
        return f"{said} Give data with standard deviations of about 1."
    changes: dict[str, Any] = {"standardize": True}
    if config.prior == "vamp":  # it needs data in [0, 1]
        changes |= {"prior": "standard_normal", "prior_options": {}}
    if not _fits(config, data, **changes):
        changes |= {"likelihood": "gaussian_scalar", "likelihood_options": {}}
    return f"{said} Give {_flags(config, **changes)}."


def _fits(config: Config, data: DataInfo, **changes: Any) -> bool:
    """Whether a run with these fields changed could be trained."""
    changed = replace(config, **changes)
    try:
        build.make_vae(changed, data)
        build.make_objective(changed)
    except UserError:
        return False
    return True


def _flags(config: Config, **changes: Any) -> str:
    """The flags that make these changes. Another model cannot begin with the weights that a run began with."""
    if config.init_from and changes.keys() & {*build.MODEL_FIELDS}:
        changes["init_from"] = ""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changes.items()}
    return " ".join(f"--config.{name}={text}" for name, text in texts.items() if changes[name] != getattr(config, name))


def _or(parts: list[str]) -> str:
    return " or ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
