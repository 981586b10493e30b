"""The training loop of one run, or of several side by side: it trains, evaluates, logs and saves checkpoints."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vae_jax import build, guard, progress, update
from vae_jax.config import Config
from vae_jax.core import VAE, Examples, Params
from vae_jax.data.streaming import Stream
from vae_jax.evaluate import latents
from vae_jax.run import checkpoints, metrics
from vae_jax.update import TrainState
from vae_jax.xla import devices


class Member(NamedTuple):
    """A run that the loop trains: a single run, or one run of a sweep."""

    run_dir: Path
    config: Config
    name: str = ""  # its log lines begin with this, if there are several members


class Outcome(NamedTuple):
    state: TrainState  # the states of all members
    step: int
    means: list[Any]  # of each member at its last evaluation: the posterior means; None without an evaluation
    lost: list[bool]  # of each member: whether it has failed because too many updates were skipped
    stop: int  # the exit status that a signal asks for; 0 without a signal


def begin(
    config: Config, vae: VAE, examples: Examples | Stream, steps_per_epoch: int, mesh: Mesh
) -> tuple[TrainState, Callable[[TrainState, int], tuple[TrainState, Any]]]:
    """Make the first state of a run, on all devices of `mesh`, and the function advance(state, count) for `train`.

    The steps are compiled in a thread, beside all that is compiled before the first call of `advance`.
    """
    num_examples = examples.num_examples if isinstance(examples, Stream) else len(examples.x)
    init, one_step = build.make_training(config, vae, steps_per_epoch, num_examples=num_examples)
    everywhere, key = devices.replicated(mesh), jax.random.key(config.seed)
    first = jax.jit(init, out_shardings=everywhere)
    if isinstance(examples, Stream):
        streamed = update.make_stream_train(one_step, config.batch_size, mesh)
        return first(key, examples.x), lambda state, count: streamed(state, examples, np.int32(count))
    examples = devices.place(examples, everywhere)
    many = update.make_train(one_step, config.batch_size, mesh)
    steps = jax.jit(many, donate_argnums=0, out_shardings=everywhere)
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), jax.eval_shape(init, key, examples.x)
    )
    lowered = steps.lower(shapes, examples, np.int32(0))
    pool = ThreadPoolExecutor(1)
    compiled = pool.submit(lowered.compile)
    pool.shutdown(wait=False)
    return first(key, examples.x), lambda state, count: compiled.result()(state, examples, np.int32(count))


def train(
    members: Sequence[Member],
    state: TrainState,
    totals: Sequence[metrics.Totals],
    *,
    split: str,
    num_steps: int,
    steps_per_epoch: int,
    advance: Callable[[TrainState, int], tuple[TrainState, Any]],
    evaluate: Callable[[int, Params], tuple[Any, Any]],
    draw: Callable[[int, Params, int, Any, Path], None],
    stopped: Callable[[], int],
    take: Callable[[Any, int], Any] = lambda tree, n: tree,
    logged: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train members, which are all at the same step, until the end or a signal, or until all of them are lost.

    state: the states of all members; `take(state, n)` is the state of member n. totals: for each member, the sums of
    the metrics since its last evaluation. advance(state, count) returns the state after `count` steps, and the sums of
    the metrics over these steps. evaluate(n, params) returns the values of every example of `split`, and the posterior
    means. draw(n, params, step, means, folder) draws pictures. stopped() returns the exit status that a signal asks
    for, or 0. logged() is called after metrics.jsonl has grown. A lost member is not evaluated or saved any more,
    except at the last step. Only the first process writes files.
    """
    is_first, numbers, config = jax.process_index() == 0, range(len(members)), members[0].config
    codes = build.make_codes(config)
    totals, means, stop, step = list(totals), [None] * len(members), 0, int(take(state, 0).step)
    lost = [guard.is_lost(jax.device_get(take(state.guard, n)), step, num_steps) for n in numbers]
    state, _ = advance(state, 0)  # compiles, so that the rates below count only steps
    bar = progress.bar(total=num_steps, initial=step, unit="step")
    chunk, saved = 1, time.monotonic()  # chunk: steps per call, which take about a second

    def save(loss: Callable[[int], float | None] = lambda n: None) -> None:
        for n in numbers:
            if is_first and (step == num_steps or not lost[n]):
                checkpoints.save(members[n].run_dir, take(state, n), totals[n], loss(n))

    while step < num_steps and not all(lost):
        start = time.monotonic()
        count, stop = devices.agree(min(chunk, steps_per_epoch - step % steps_per_epoch), stopped())
        if stop:
            break
        state, sums = advance(state, count)
        sums, guards = jax.device_get((sums, state.guard))
        seconds = time.monotonic() - start
        totals = [metrics.add(totals[n], take(sums, n), count, seconds) for n in numbers]
        step, chunk = step + count, max(1, int(count / seconds))
        lost = [guard.is_lost(take(guards, n), step, num_steps) for n in numbers]
        bar.update(count)
        bar.set_postfix(loss=f"{take(sums, 0)['loss'] / count:.3f}")
        if step % (config.eval_epochs * steps_per_epoch) and step < num_steps:
            if time.monotonic() > saved + checkpoints.MAX_SECONDS:
                save()
                saved = time.monotonic()
            continue

        for n, (run_dir, own, name) in enumerate(members):
            if lost[n] and step < num_steps:
                continue
            values, means[n] = evaluate(n, take(state.averaged, n))
            at: dict[str, Any] = {"step": step, "epoch": step / steps_per_epoch}
            trained = {**at, "split": "train", **metrics.averages(totals[n], own.batch_size)}
            used = {name: value for name, value in latents(means[n], codes).items() if name in metrics.LATENTS}
            record = {**at, "split": split, **build.split_loss(own, values), **used}
            totals[n] = {}
            if not is_first:
                continue
            rate, label = trained["examples_per_second"], f"{name}  " if name else ""
            left = (num_steps - step) * own.batch_size / rate
            progress.say(label + metrics.describe(record, rate, left))
            if trained["skipped"]:
                progress.say(label + guard.describe(take(guards, n)))
            metrics.append(run_dir, trained, record)  # before the checkpoint: after a crash, both are written again
            logged()
            checkpoints.save(run_dir, take(state, n), {}, record["loss"])
            if own.picture_epochs and at["epoch"] % own.picture_epochs == 0:
                params = devices.local_copy(take(state.averaged, n))
                draw(n, params, step, means[n], run_dir / f"epoch-{at['epoch']:g}")
        saved = time.monotonic()

    bar.close()
    save()  # if training stopped inside an epoch
    return Outcome(state, step, means, lost, stop)
