"""The parts of `accelerator.py`: each function gives jobs, which measure a row of figures each."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np
import ours
from measure import Run, Unavailable

from vae_jax import build, core, evaluate, update
from vae_jax.config import Config
from vae_jax.data import inputs
from vae_jax.run import ensemble

NETWORKS = {"784-400-20": ("pytorch_example", "MLP"), "convolutional": ("conv", "Convolutional")}
# Multiplications of a forward pass for an image, and those of them whose input gets no gradient: it is the image.
PRODUCTS = {"784-400-20": (651_200, 313_600), "convolutional": (6_203_008, 56_448)}
AGREEMENT = 1e-3  # of losses in float32 at the highest precision
FIGURES = ("nll", "nll_se", "elbo", "active_units", "share_pareto_k_above_0.7", "num_samples", "num_examples")


class Sizes(NamedTuple):
    steps: dict[int, int]  # batch size -> steps of a repeat
    dtypes: tuple[str, ...]
    repeats: int
    square: int  # the side of the matrices of the peak
    num_train: int
    num_test: int
    num_samples: tuple[int, int]  # of the NLL, and of the recipe's NLL
    nll_steps: int  # of training before the NLL
    members: int
    agreement: dict[str, int]  # network -> how many losses are compared
    recipe: dict[str, Any]  # fields of the recipe in place of its own


Job = Callable[[], dict[str, Any]]  # raises Unavailable for a row that cannot be had
Data = Mapping[str, np.ndarray]  # x_train and x_test, [N, 28, 28, 1], uint8


def rows_of(sizes: Sizes) -> list[tuple[str, int, str]]:
    """Network, batch size and type of each row of training, the small batches first."""
    return [(network, size, dtype) for size, network, dtype in product(sizes.steps, NETWORKS, sizes.dtypes)]


def row_name(network: str, batch_size: int, dtype: str) -> str:
    return f"{network}, batch {batch_size}, {dtype}"


def flops(network: str) -> int:
    """Operations of the matrix products of a training step, per image."""
    forward, without_gradient = PRODUCTS[network]
    return 2 * (3 * forward - without_gradient)


def repeated(run: Run, count: int) -> list[float]:
    """`count` values after a first one, which compiles."""
    run()
    return [run() for _ in range(count)]


def seconds_of(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def trainer(config: Config, x: np.ndarray) -> tuple[Any, Callable[[Any, int], tuple[Any, Any]], float]:
    """The first state, advance(state, steps) -> (state, sums of the metrics), and the seconds that it took to compile.

    The state that `advance` takes is used up.
    """
    begin = time.monotonic()
    one, start, examples = ours.parts(config, x)
    train = jax.jit(update.make_train(one, config.batch_size), donate_argnums=0)

    def advance(state: Any, steps: int) -> tuple[Any, Any]:
        return jax.block_until_ready(train(state, examples, np.int32(steps)))

    state, _ = advance(start(jax.random.key(config.seed)), 0)
    return state, advance, time.monotonic() - begin


def bound_of(config: Config, data: Data, num_samples: int) -> Callable[..., dict[str, Any]]:
    """figures(params, first_batch=False) of the test images, binarised once as for `vae_jax evaluate`."""
    vae = build.make_vae(config, ours.info(len(data["x_train"])))
    bound = evaluate.make_evaluate(vae, num_samples=num_samples, **build.evaluation_options(config))
    examples = core.Examples(inputs.prepare_fixed(data["x_test"], "test", config), None)

    def figures(params: Any, *, first_batch: bool = False) -> dict[str, Any]:
        batches = (lambda starts: islice(starts, 1)) if first_batch else iter
        summary = evaluate.summarize(bound(params, jax.random.key(0), examples, batches), num_samples)
        return {name: summary[name] for name in FIGURES}

    return figures


def predicted(bound: Callable[..., Any], params: Any, config: Config, data: Data) -> float:
    """The seconds that all test images will take, from those of the first batch once it is compiled."""
    bound(params, first_batch=True)
    batch_size = build.evaluation_options(config).get("batch_size", 400)
    return seconds_of(lambda: bound(params, first_batch=True)) * -(-len(data["x_test"]) // batch_size)


def speed_jobs(data: Data, sizes: Sizes, end: float) -> dict[str, Job]:
    peaks = {}

    def peak(dtype: str, precision: str | None) -> dict[str, Any]:
        with jax.default_matmul_precision(precision):
            run = ours.square_products(steps=20, size=sizes.square, dtype=dtype).run
            rates = repeated(run, sizes.repeats)
        if precision is None:
            peaks[dtype] = median(rates)
        return {"tflops_peak": rates}

    def train(network: str, batch_size: int, dtype: str) -> dict[str, Any]:
        fields = {"recipe": NETWORKS[network][0], "batch_size": batch_size, "compute_dtype": dtype}
        fields["steps"] = sizes.steps[batch_size]
        rates = repeated(ours.training(x=data["x_train"], **fields).run, sizes.repeats)
        alone = repeated(ours.network_products(**fields).run, sizes.repeats)
        tflops = median(rates) * flops(network) / 1e12
        return {
            "images_per_second": rates,
            "step_microseconds": [1e6 * batch_size / rate for rate in rates],
            "tflops": tflops,
            "share_of_peak": tflops / peaks[dtype],
            "products_images_per_second": alone,
            "share_of_products": median(rates) / median(alone),
        }

    squares = {f"square products, {dtype}": partial(peak, dtype, None) for dtype in sizes.dtypes}
    squares["square products, float32, highest precision"] = partial(peak, "float32", "highest")
    return squares | {row_name(*row): partial(train, *row) for row in rows_of(sizes)}


def pytorch_jobs(data: Data, sizes: Sizes, end: float) -> dict[str, Job]:
    """The same rows by `pytorch_steps.py`, a process that runs here and now. The jobs look up what it has printed."""
    rows, found = rows_of(sizes), {}
    if jax.default_backend() != "gpu":
        reason = "PyTorch is compared on GPUs"
    elif find_spec("torch") is None:
        reason = "torch is not installed"
    else:
        output, reason = _pytorch(sizes, rows, end - 2 - time.monotonic())
        lines = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
        found = {row_name(*rows[line.pop("row")]): line for line in lines}

    def look_up(name: str) -> dict[str, Any]:
        line = found.get(name, {"failed": reason})
        if "images_per_second" not in line:
            raise Unavailable(str(line["failed"]))
        return line

    return {name: partial(look_up, name) for name in (row_name(*row) for row in rows)}


def _pytorch(sizes: Sizes, rows: list[tuple[str, int, str]], seconds: float) -> tuple[bytes, str]:
    """The lines that the process printed, and why there are no more."""
    program = Path(__file__).with_name("pytorch_steps.py")
    each = [f"{NETWORKS[network][1]},{size},{dtype},{sizes.steps[size]}" for network, size, dtype in rows]
    path = os.pathsep.join([str(program.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command, env = (
        [sys.executable, str(program), f"--repeats={sizes.repeats}", *each],
        {**os.environ, "PYTHONPATH": path},
    )
    try:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, timeout=max(seconds, 0))
    except subprocess.TimeoutExpired as error:
        return error.stdout or b"", "no time was left"
    return done.stdout, f"the process of PyTorch ended with status {done.returncode}"


def nll_jobs(data: Data, sizes: Sizes, end: float) -> dict[str, Job]:
    def nll(dtype: str) -> dict[str, Any]:
        config = replace(ours.TANH, compute_dtype=dtype, batch_size=min(sizes.steps))
        state, advance, _ = trainer(config, data["x_train"])
        state, _ = advance(state, sizes.nll_steps)
        bound = bound_of(config, data, sizes.num_samples[0])
        evaluation = predicted(bound, state.averaged, config, data)
        if time.monotonic() + evaluation > end:
            raise Unavailable(f"it would take {evaluation:.0f} s, and no time was left")
        figures: dict[str, Any] = {}
        seconds: list[float] = []
        while len(seconds) < sizes.repeats and (not seconds or time.monotonic() + max(seconds) < end):
            seconds.append(seconds_of(lambda: figures.update(bound(state.averaged))))
        return {"seconds": seconds, "images_per_second": [figures["num_examples"] / s for s in seconds], **figures}

    return {f"784-200-200-50, {dtype}": partial(nll, dtype) for dtype in sizes.dtypes}


def members_jobs(data: Data, sizes: Sizes, end: float) -> dict[str, Job]:
    batch_size = min(sizes.steps)
    steps, x = -(-sizes.steps[batch_size] // 4), data["x_train"]
    fields = {"recipe": "pytorch_example", "batch_size": batch_size}
    config, steps_per_epoch = ours.recipe_config(fields), len(x) // batch_size

    def times(num: int, batched: bool) -> list[float]:
        vae, examples = build.make_vae(config, ours.info(len(x))), core.Examples(jax.device_put(x), None)
        members = [replace(config, seed=seed) for seed in range(num)]
        states = ensemble.init_states(vae, members, steps_per_epoch, examples.x)
        train = ensemble.make_train(vae, config, steps_per_epoch, batched=batched)

        def run() -> None:
            nonlocal states
            states, _ = train(states, ensemble.varied_of(members), examples, np.int32(steps))
            jax.block_until_ready(states)

        return repeated(partial(seconds_of, run), sizes.repeats)

    def sweep() -> dict[str, Any]:
        one, together = times(1, False), times(sizes.members, True)
        in_turn = times(sizes.members, False)
        return {
            **{"members": sizes.members, "steps": steps},
            **{"one_seconds": one, "together_seconds": together, "in_turn_seconds": in_turn},
            "together_to_one": median(together) / median(one),
            "in_turn_to_one": median(in_turn) / median(one),
        }

    return {f"784-400-20, batch {batch_size}": sweep}


def agreement_jobs(data: Data, sizes: Sizes, end: float) -> dict[str, Job]:
    """The losses of the first steps, from one initial state on the same images."""

    def losses(network: str, count: int) -> dict[str, Any]:
        try:
            host = jax.devices("cpu")[0]
        except RuntimeError:
            raise Unavailable("this JAX has no CPU among its platforms") from None
        config = ours.recipe_config({"recipe": NETWORKS[network][0], "batch_size": min(sizes.steps)})
        with jax.default_device(host):
            one, start, examples = ours.parts(config, data["x_train"][: count * config.batch_size])
            first = start(jax.random.key(0))
        train = jax.jit(update.make_train(one, config.batch_size))

        def on(device: jax.Device, precision: str | None) -> np.ndarray:
            with jax.default_device(device), jax.default_matmul_precision(precision):
                state, own, values = *jax.device_put((first, examples), device), []
                for _ in range(count):
                    state, sums = train(state, own, np.int32(1))
                    values.append(sums["loss"])
                return np.array(values, np.float64)

        expected = on(host, "highest")
        found = {name: on(jax.devices()[0], None if name == "default" else name) for name in ("highest", "default")}
        errors = {name: float(np.max(np.abs(value / expected - 1))) for name, value in found.items()}
        return {
            "largest_relative_difference": errors,
            "as_expected": errors["highest"] <= AGREEMENT,
            "losses": {"cpu": expected.tolist(), **{name: value.tolist() for name, value in found.items()}},
        }

    return {f"{network}, {count} steps": partial(losses, network, count) for network, count in sizes.agreement.items()}


def recipe_jobs(data: Data, sizes: Sizes, end: float) -> dict[str, Job]:
    """The recipe for as many epochs as fit before its NLL, with the schedule of so many."""

    def train() -> dict[str, Any]:
        config = ours.recipe_config({"recipe": "mnist_gpu", **sizes.recipe})
        x, of_recipe = data["x_train"][: -config.validation_size], config.num_epochs
        epoch, few = len(x) // config.batch_size, min(20, len(x) // config.batch_size)
        state, advance, compilation = trainer(config, x)
        bound = bound_of(config, data, sizes.num_samples[1])
        evaluation = 1.1 * predicted(bound, state.averaged, config, data)
        per_epoch = seconds_of(lambda: advance(state, few)) * epoch / few

        left = end - evaluation - 1.1 * compilation - time.monotonic()
        num = min(of_recipe, int(0.97 * left / per_epoch))
        if num * epoch <= config.warmup_steps:
            raise Unavailable(f"only {max(num, 0)} epochs of {per_epoch:.1f} s fit into the time left")
        state, advance, _ = trainer(replace(config, num_epochs=num), x)
        begin, done = time.monotonic(), 0
        while done < num and (not done or time.monotonic() + per_epoch < end - evaluation):
            (state, sums), done = advance(state, epoch), done + 1
        seconds, begin = time.monotonic() - begin, time.monotonic()
        figures = bound(state.averaged)
        return {
            **{"epochs": done, "epochs_of_schedule": num, "epochs_of_recipe": of_recipe, "seconds": seconds},
            "nll_seconds": time.monotonic() - begin,
            "images_per_second": done * epoch * config.batch_size / seconds,
            "train_loss": float(sums["loss"]) / epoch,
            **figures,
        }

    return {"configs/mnist_gpu.py": train}
