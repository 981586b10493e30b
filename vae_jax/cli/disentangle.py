"""Measure how well each latent dimension of a trained VAE stands for one factor of variation of its data."""

from argparse import Namespace
from functools import partial
from typing import Any

import jax
import numpy as np

from vae_jax import build, disentanglement, progress
from vae_jax.cli import console
from vae_jax.cli.examples import Chosen, load, moments
from vae_jax.data.files import permutation
from vae_jax.errors import UserError
from vae_jax.evaluate import mean
from vae_jax.run import checkpoints
from vae_jax.run.checkpoints import Restored
from vae_jax.show import pictures

FEW = 100  # training examples, below which SAP and DCI say little


def disentangle(options: Namespace) -> dict[str, Any]:
    """Draw the information that each latent has of each factor, and return the figures of it."""
    restored = checkpoints.load(options.run_dir, options.checkpoint, trust=options.trust)
    _check_latents(options, restored)
    chosen = load(options, restored)
    names, factors = _varied(*_factors(chosen, options.data or restored.config.dataset))
    q = moments(restored, chosen.examples)
    finite = np.all([np.isfinite(array).all(1) for array in q.values()], 0)
    if not finite.all():
        low, high = restored.data.range
        raise UserError(
            f"The codes of {np.sum(~finite)} of {len(finite)} examples are not finite. The VAE was trained on data in "
            f"[{low:g}, {high:g}]. Give data on that scale."
        )

    codes, entropy = q["mean"], disentanglement.entropies(factors)
    binned = information = disentanglement.binned_information(codes, factors)
    mig = {"mig": disentanglement.gap(binned, entropy)}
    if "log_var" in q:
        information = disentanglement.information_from_posterior(
            jax.random.key(options.seed),
            codes,
            q["log_var"],
            factors,
            num_samples=options.num_samples,
            progress=partial(progress.bar, desc="information"),
        )
        mig["mig_q"] = disentanglement.gap(information, entropy)
    else:
        progress.say(f"{options.run_dir}: mig_q is left out, because q(z | x) is not Gaussian.")
    order, half = permutation(len(codes)), min(options.num_train, len(codes) // 2)
    if half < FEW:
        progress.say(
            f"SAP and DCI are of {half} training examples, so few that they say little. --split=train or --data=FILE "
            "gives more."
        )
    halves = [array[part] for part in (order[:half], order[half : 2 * half]) for array in (codes, factors)]
    sap = disentanglement.separated_attributes(*halves, progress=partial(progress.bar, desc="SAP"))
    dci = disentanglement.dci(*halves, seed=options.seed, progress=partial(progress.bar, desc="DCI"))

    each = mig | {"sap": sap, "completeness": dci.completeness_of, "informativeness": dci.informativeness_of}
    described = {
        name: {
            "num_values": len(np.unique(factors[:, i])),
            "entropy": float(entropy[i]),
            **{figure: float(values[i]) for figure, values in each.items()},
            "information": information[i].tolist(),
        }
        for i, name in enumerate(names)
    }
    rows = [f"{name} ({h:.2f} nats)" for name, h in zip(names, entropy, strict=True)]
    return {
        "out": console.write(
            options.out, lambda path: pictures.save_matrix(path, information / entropy[:, None], rows, "I(z; v) / H(v)")
        ),
        **{figure: mean(values) for figure, values in (mig | {"sap": sap}).items()},
        # With one factor, every code is about this factor alone.
        "dci_disentanglement": dci.disentanglement if len(names) > 1 else None,
        "dci_completeness": dci.completeness,
        "dci_informativeness": dci.informativeness,
        "factors": described,
        "num_examples": len(codes),
        "num_samples": options.num_samples if "log_var" in q else 0,
        "num_train": half,
        "checkpoint": options.checkpoint,
        "split": options.split,
        "step": restored.step,
        "seed": options.seed,
    }


def _check_latents(options: Namespace, restored: Restored) -> None:
    """Raise UserError unless z is one array of continuous numbers."""
    config = restored.config
    if build.make_codes(config):
        raise UserError(
            f"{options.run_dir} has the posterior {config.posterior!r}, whose z is discrete; disentangle compares "
            "numbers. Use a run with a continuous z, or the command evaluate, which measures the use of the codes."
        )
    draw = lambda params: restored.vae.prior(params).sample(jax.random.key(0), (1,))  # noqa: E731
    if config.hierarchy or len(jax.tree.leaves(jax.eval_shape(draw, restored.params))) != 1:
        raise UserError(
            f"{options.run_dir} has several latents; disentangle needs one, whose dimensions it compares. Use a run "
            "without a hierarchy."
        )


def _factors(chosen: Chosen, name: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the factors of the examples, and the factors [N, F]; the label if there are no others."""
    if chosen.factors is not None:
        return chosen.factor_names, chosen.factors
    if chosen.label is None:
        raise UserError(
            f"{name} has no factors of variation. Give data with them by --data: an .npz file with x and f, whole "
            "numbers of shape [N, F], or with labels y."
        )
    return ("label",), chosen.label[:, None]


def _varied(names: tuple[str, ...], factors: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """The factors that have several values in these examples, and their names. A line on stderr names the others."""
    varied = np.any(factors != factors[:1], 0)
    constant = [name for name, varies in zip(names, varied, strict=True) if not varies]
    if not varied.any():
        raise UserError(
            f"Each factor ({', '.join(names)}) has one value in all {len(factors)} examples; expected several. Give "
            "other data by --data."
        )
    for name, factor in zip(names, factors.T, strict=True):
        if 2 * len(np.unique(factor)) > len(factor) > 2:
            raise UserError(
                f"{name} has {len(np.unique(factor))} values in {len(factor)} examples; expected that values repeat. "
                "Give more examples, or put its values into classes."
            )
    if constant:
        progress.say(f"Left out, since they have one value in all examples: {', '.join(constant)}.")
    return tuple(name for name in names if name not in constant), factors[:, varied]
