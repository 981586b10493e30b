"""What the contenders of head_to_head.py share, the contender vae_jax, and the bound by which all are judged."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import ours

from vae_jax import build, evaluate
from vae_jax.config import Config, differences
from vae_jax.core import Examples
from vae_jax.data import inputs
from vae_jax.errors import UserError
from vae_jax.run import loop, runs
from vae_jax.xla import devices

# The fields that `Setting` holds, and those that change nothing of what is trained.
KNOWN = {"hidden_sizes", "activation", "latent_dim", "prior", "prior_options", "kl", "estimator", "compute_dtype"}
KNOWN |= {"learning_rate", "schedule", "ema_decay", "batch_size", "num_epochs", "seed", "network_options"}
KNOWN |= {"dataset", "binarization", "eval_epochs", "picture_epochs"}


class Setting(NamedTuple):
    """What a contender trains, with the names of vae_jax's config."""

    hidden_sizes: tuple[int, ...]
    activation: str
    latent_dim: int
    num_couplings: int  # of the RealNVP prior; 0: the prior is N(0, I)
    hidden_size: int  # of its couplings
    stl: bool  # the KL from the sample, sticking the landing, in place of the closed form
    compute_dtype: str
    learning_rate: float
    schedule: str
    ema_decay: float
    batch_size: int
    num_epochs: int
    seed: int


class Trained(NamedTuple):
    """A training run. Times are in seconds, and without the compilation."""

    seconds: list[float]  # from the beginning to the end of each epoch
    losses: list[float]  # the mean over the steps of each epoch, in nats per example
    params: list[Any]  # at the end of each epoch, averaged where the setting says so, in the form of vae_jax
    compile_seconds: float
    choice: str  # which loop it was


def setting(config: Config) -> Setting:
    """What the other contenders have to train. Raises UserError for a config of which they would miss a part."""
    options = {"num_couplings": 6, "hidden_size": 256, **config.prior_options}
    flow = config.prior == "real_nvp"
    missed = sorted(differences(config, Config()).keys() - KNOWN)
    estimator = {("auto", "pathwise"): False, ("monte_carlo", "stl"): True}.get((config.kl, config.estimator))
    supported = (flow or config.prior == "standard_normal") and config.schedule in ("constant", "cosine")
    if missed or estimator is None or not supported or flow != estimator or config.binarization != "dynamic":
        raise UserError(f"The contenders do not train this config ({', '.join(missed) or 'its parts'}). Change it.")
    return Setting(
        tuple(config.hidden_sizes),
        config.activation,
        config.latent_dim,
        options["num_couplings"] if flow else 0,
        options["hidden_size"] if flow else 0,
        estimator,
        config.compute_dtype,
        config.learning_rate,
        config.schedule,
        config.ema_decay,
        config.batch_size,
        config.num_epochs,
        config.seed,
    )


def load(config: Config) -> inputs.Inputs:
    return inputs.load(inputs.absolute(config), None, build.make_likelihood)


def first_params(config: Config, own: inputs.Inputs) -> Any:
    """The weights with which all contenders begin: those of train.py with this seed, as NumPy arrays."""
    init, _ = build.make_training(config, build.make_vae(config, own.data), steps_per_epoch(config, own))
    return jax.device_get(jax.jit(init)(jax.random.key(config.seed), own.examples.x).params)


def grey(own: inputs.Inputs) -> np.ndarray:
    """The training images, [N, D], float32: the probability of each pixel, in [0, 1]."""
    x = np.asarray(own.examples.x)
    return x.reshape(len(x), -1) / np.float32(255 if x.dtype == np.uint8 else 1)


def steps_per_epoch(config: Config, own: inputs.Inputs) -> int:
    return own.data.num_train // config.batch_size


def vae_jax(config: Config) -> Trained:
    """train.py's own loop. Its log goes to stderr, and its run directory is thrown away."""
    config = replace(config, eval_epochs=1, picture_epochs=0)
    own = load(config)
    vae = build.make_vae(config, own.data)
    held_out = evaluate.make_evaluate_objective(vae, build.make_evaluation_objective(config))
    start = time.perf_counter()
    state, steps = loop.begin(config, vae, own.examples, steps_per_epoch(config, own), devices.make_mesh())
    compile_seconds = 0.0
    seconds, losses, kept = [0.0], [0.0], []

    def advance(state: Any, count: int) -> tuple[Any, Any]:
        nonlocal compile_seconds
        begin = time.perf_counter()
        state, sums = jax.block_until_ready(steps(state, count))
        if count:
            seconds[-1] += time.perf_counter() - begin
            losses[-1] += float(sums["loss"]) / steps_per_epoch(config, own)
        else:
            compile_seconds = time.perf_counter() - start
        return state, sums

    def at_end(_: int, params: Any) -> tuple[Any, Any]:
        kept.append(jax.device_get(params))
        seconds.append(seconds[-1])
        losses.append(0.0)
        return held_out(params, jax.random.key(0), own.held_out)

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        with runs.open_run(run_dir, config, own.data):
            loop.train(
                [loop.Member(run_dir, config)],
                state,
                [{}],
                split=own.split,
                num_steps=config.num_epochs * steps_per_epoch(config, own),
                steps_per_epoch=steps_per_epoch(config, own),
                advance=advance,
                evaluate=at_end,
                draw=lambda *_: None,
                stopped=lambda: 0,
            )
    return Trained(seconds[:-1], losses[:-1], kept, compile_seconds, "train.py's own loop")


def make_bound(config: Config, own: inputs.Inputs, num_samples: int) -> Callable[[Any, int], float]:
    """nll(params, num), in nats: the importance bound over `num` test images, evenly spaced, with float32 products."""
    config = replace(config, compute_dtype="float32")
    vae = build.make_vae(config, own.data)
    bound = evaluate.make_evaluate(vae, num_samples=num_samples, **build.evaluation_options(config))

    def nll(params: Any, num: int) -> float:
        rows = jnp.asarray(evaluate.evenly(len(own.held_out.x), num))
        return -evaluate.mean(bound(params, jax.random.key(0), Examples(own.held_out.x[rows], None)).log_px)

    return nll


def gflops(dtype: str, size: int) -> float:
    """10^9 operations a second of the product of two square matrices: the median of 5."""
    run = ours.square_products(steps=max(1, 2**33 // size**3), size=size, dtype=dtype).run
    run()
    return 1000 * float(np.median([run() for _ in range(5)]))
