"""Save and load the checkpoints of a run. A checkpoint that is incomplete or damaged is never used.

checkpoints/N/      the state after step N; it gets this name by one rename when all files are written:
    params/         the weights to evaluate
    state/          the rest of the training state
    progress.json   the loss, the sums of the metrics since the last evaluation, and the kind of random key
    metrics.jsonl   the lines of the run's metrics.jsonl so far
    SHA256SUMS      the SHA-256 digests of all these files
"""

import json
import shutil
import sys
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from vae_jax import build, names
from vae_jax.config import Config, differences
from vae_jax.core import VAE, Params
from vae_jax.data import inputs
from vae_jax.data.inputs import DataInfo
from vae_jax.errors import UserError
from vae_jax.run import arrays, digests, metrics, weights
from vae_jax.run.runs import read_run, steps as steps, trusted
from vae_jax.update import TrainState
from vae_jax.xla import devices

MAX_SECONDS = 300  # of training without a checkpoint, even if the next evaluation is far away
MAX_PROGRESS = 1 << 20  # bytes of a progress.json, which has a few hundred


class Restored(NamedTuple):
    """A trained VAE, as a checkpoint holds it."""

    config: Config
    data: DataInfo
    vae: VAE
    params: Params
    step: int


def save(run_dir: Path, state: TrainState, totals: metrics.Totals, loss: float | None = None) -> None:
    """Write a checkpoint of `state`, and keep only the two latest checkpoints and the one with the lowest loss.

    totals: the sums of the metrics since the last evaluation. loss: the loss of `state`, if it was evaluated. Raises
    OSError if the checkpoint cannot be written; the earlier checkpoints then stay as they are.
    """
    if int(state.step) in steps(run_dir):
        return
    new, (params, rest) = _folder(run_dir, ".new"), _split(state)
    try:
        arrays.write(new, params=params, state=rest)
        progress = {"loss": loss, "totals": totals, "prng": _prng(state)}
        (new / "progress.json").write_text(metrics.to_json(progress), "utf-8")
        (new / "metrics.jsonl").write_text(metrics.text(run_dir), "utf-8")
        digests.write(new)
        (run_dir / "run.json").stat()  # fails if the run directory has vanished: orbax would have made it anew
        new.rename(_folder(run_dir, int(state.step)))
    except OSError:
        for left in new.parent.glob(f"{new.name}*"):
            shutil.rmtree(left, ignore_errors=True)
        (run_dir / "run.json").stat()  # if the run directory has vanished, this error says so
        raise
    best = _best(run_dir, steps(run_dir))
    for step in steps(run_dir)[:-2]:
        if step != best:
            _delete(run_dir, step)


def sound_steps(run_dir: Path) -> list[int]:
    """The steps of the undamaged checkpoints, whose files match their digests, in rising order.

    Damaged checkpoints are renamed to N.damaged, with a line on stderr for each. Raises UserError if all are damaged.
    """
    sound, damaged = _verify(run_dir)
    for step, reason in damaged.items():
        aside = _folder(run_dir, f"{step}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        _folder(run_dir, step).rename(aside)
        print(f"{_folder(run_dir, step)} is damaged ({reason}): set aside as {aside.name}", file=sys.stderr)
    return sorted(sound)


def resume(run_dir: Path, like: TrainState, step: int | None = None) -> tuple[TrainState, metrics.Totals]:
    """Load the state after `step`, by default the latest of `sound_steps`, and its totals.

    like: a state of the same shapes, which is returned itself if there is no checkpoint. Later checkpoints are deleted
    and metrics.jsonl becomes what it was after `step`, because the resumed run writes them again.
    """
    sound = sound_steps(run_dir)
    if not sound:
        metrics.write_text(run_dir / "metrics.jsonl", "")
        return like, {}
    step = sound[-1] if step is None else step
    if step not in sound:
        raise UserError(f"{run_dir} has no undamaged checkpoint {step}. Choose one of: {str(sound)[1:-1]}.")
    folder, (params, rest) = _folder(run_dir, step), jax.eval_shape(_split, like)
    _, totals, prng = _progress(folder)
    if prng != _prng(like):
        raise UserError(
            f"{run_dir} was trained with JAX_DEFAULT_PRNG_IMPL={prng}; now it is {_prng(like)}. Set {prng} to go on."
        )
    params, rest = arrays.read(folder, params=params, state=rest)
    for later in sound:
        if later > step:
            _delete(run_dir, later)
    metrics.write_text(run_dir / "metrics.jsonl", metrics.text(folder))
    return _join(params, rest), totals


def resume_everywhere(run_dir: Path, like: TrainState) -> tuple[TrainState, metrics.Totals]:
    """Do what `resume` does, for several devices or processes. Only the first process reads, and gets the totals."""
    totals: metrics.Totals = {}

    def read() -> TrainState:
        nonlocal totals
        state, totals = resume(run_dir, devices.local_copy(like))
        return state

    return devices.place(devices.from_first_process(read, devices.local_copy(like)), like.step.sharding), totals


@overload
def load(
    run_dir: str | Path, checkpoint: str = "latest", *, vae: VAE | None = None, trust: bool = False
) -> Restored: ...
@overload
def load(run_dir: str | Path, *, like: Any) -> tuple[Any, dict[str, Any]]: ...
def load(
    run_dir: str | Path,
    checkpoint: str = "latest",
    *,
    vae: VAE | None = None,
    trust: bool = False,
    like: Any = None,
) -> Any:
    """Load the trained VAE of a run directory: its config, its pure functions and its parameters.

    checkpoint: 'latest', 'best' (the lowest evaluation loss) or a step. 'latest' and 'best' skip damaged checkpoints,
    with a line on stderr. trust: run the code from outside that the run uses. vae: your own functions for these
    parameters, in place of those that the config names, none of which is then built. Raises UserError if the directory
    is not a run, has no such undamaged checkpoint, or uses code from outside without `trust`.

    like: load what `vae_jax.save` wrote instead, (params, metadata), into a pytree of these shapes and types.
    """
    if like is not None:
        return weights.load(run_dir, like)
    run_dir = Path(run_dir)
    config, data = read_run(run_dir)
    if vae is None:
        config = trusted(run_dir, config, trust)
        try:
            vae = build.make_vae(config, data)
        except UserError as error:
            raise UserError(f"{run_dir / 'run.json'}: {error}") from None
    params_like = build.abstract_params(vae, data)
    while True:
        there = steps(run_dir)
        try:
            step = _choose(run_dir, checkpoint)
            (params,) = arrays.read(_folder(run_dir, step), params=params_like)
            return Restored(config, data, vae, params, step)
        except (OSError, UserError):
            if steps(run_dir) == there:  # else a training run has just deleted the checkpoint: try again
                raise


def begin_from(vae: VAE, config: Config, data: DataInfo) -> VAE:
    """Make `vae` begin with the latest weights of the run `config.init_from`. If that is empty, `vae` is unchanged.

    The optimiser, the schedules and the average of the weights begin anew. Raises UserError if that run has another
    model, examples of another shape or other classes, or if its weights are not finite.
    """
    if not config.init_from:
        return vae
    source_config, source_data = read_run(Path(config.init_from))
    found = differences(source_config, names.portable(config), build.MODEL_FIELDS)
    if source_data.shape != data.shape:
        found["the shape of an example"] = source_data.shape, data.shape
    elif (source_data.classes, source_data.names) != (data.classes, data.names) and data.classes:
        there, here = (inputs.show_classes(d.classes, d.names) for d in (source_data, data))
        found["the classes"] = there, here
    elif source_data.num_covariates != data.num_covariates:
        found["the covariates of an example"] = source_data.num_covariates, data.num_covariates
    if found:
        listed = ", ".join(f"{name} (there {a!r}, here {b!r})" for name, (a, b) in found.items())
        raise UserError(f"init_from is {config.init_from}, a run of another model: {listed}. Set the same here.")
    source = load(config.init_from, vae=vae)  # which runs no code of that run
    for name, leaf in arrays.named(source.params).items():
        if not np.isfinite(leaf).all():
            raise UserError(
                f"init_from is {config.init_from}, whose weights are not finite at its step {source.step} ({name}). "
                "Choose another run, or train that one anew."
            )
    return vae._replace(init=lambda key, x: source.params)


def _folder(run_dir: Path, name: int | str) -> Path:
    return run_dir / "checkpoints" / str(name)


def _delete(run_dir: Path, step: int) -> None:
    """Delete a checkpoint. It is renamed first, so that half a checkpoint never keeps the name of a whole one."""
    old = _folder(run_dir, ".old")
    shutil.rmtree(old, ignore_errors=True)
    _folder(run_dir, step).rename(old)
    shutil.rmtree(old)


def _verify(run_dir: Path, *parts: str, only_latest: bool = False) -> tuple[list[int], dict[int, str]]:
    """Return the steps of the undamaged checkpoints, latest first, and what is wrong with each damaged checkpoint.

    parts: what to check in each checkpoint, by default all files. one: stop at the first undamaged checkpoint. Raises
    UserError if all checkpoints are damaged.
    """
    sound, damaged = [], {}
    for step in reversed(steps(run_dir)):
        reason = digests.damage(_folder(run_dir, step), *parts)
        if reason:
            damaged[step] = reason
            continue
        sound.append(step)
        if only_latest:
            break
    if damaged and not sound:
        reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise UserError(f"{run_dir} has only damaged checkpoints ({reasons}). Train again, with --restart.")
    return sound, damaged


def _choose(run_dir: Path, checkpoint: str) -> int:
    known = steps(run_dir)
    if not known:
        raise UserError(f"{run_dir} has no checkpoint yet. Train it: the command that began it resumes it.")
    if checkpoint in map(str, known):
        step = int(checkpoint)
        if reason := digests.damage(_folder(run_dir, step), "params"):
            raise UserError(f"{_folder(run_dir, step)} is damaged ({reason}). Choose another checkpoint.")
        return step
    if checkpoint not in ("latest", "best"):
        raise UserError(f"{run_dir} has no checkpoint {checkpoint!r}. Choose one of: latest, best, {str(known)[1:-1]}.")
    latest = checkpoint == "latest"
    sound, damaged = _verify(run_dir, "params", *(() if latest else ("progress.json",)), only_latest=latest)
    step = sound[0] if latest else _best(run_dir, sound) or sound[0]
    for other, reason in damaged.items():
        print(f"{_folder(run_dir, other)} is damaged ({reason}): using {step} instead", file=sys.stderr)
    return step


def _best(run_dir: Path, among: list[int]) -> int | None:
    """The step of the checkpoint with the lowest loss; None if no checkpoint has a loss."""
    losses = {step: loss for step in among if (loss := _loss(_folder(run_dir, step))) is not None}
    return min(losses, key=lambda step: (losses[step], step), default=None)


def _loss(folder: Path) -> float | None:
    if digests.damage(folder, "progress.json"):
        return None
    loss, *_ = _progress(folder)
    return loss if loss is not None and isfinite(loss) else None


def _progress(folder: Path) -> tuple[float | None, metrics.Totals, str]:
    """Read the loss, the totals and the kind of random key from progress.json. Raises UserError if it is invalid."""
    path = folder / "progress.json"
    try:
        if path.stat().st_size > MAX_PROGRESS:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        progress = json.loads(path.read_text("utf-8"))
        loss, totals = progress["loss"], progress["totals"]
        if not all(isinstance(number, float | int | None) for number in (loss, *totals.values())):
            raise TypeError("not only numbers")
        totals = {name: nan if total is None else total for name, total in totals.items()}
        return loss, totals, str(progress.get("prng", "threefry2x32"))  # JAX's default, if the checkpoint is old
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{path} is not a valid progress.json ({reason}). Choose another checkpoint.") from None


def _prng(state: TrainState) -> str:
    """The kind of a state's random key. The state may be abstract, with only shapes and types instead of arrays."""
    kinds = ("threefry2x32", "rbg", "unsafe_rbg")
    return next((kind for kind in kinds if jax.random.key(0, impl=kind).dtype == state.key.dtype), "another one")


def _split(state: TrainState) -> tuple[Params, dict[str, Any]]:
    """Split a state into the weights to evaluate and the rest, so that the weights are read without the optimiser."""
    key = jax.random.key_data(state.key)
    rest = {"step": state.step, "opt_state": state.opt_state, "key": key, "guard": state.guard}
    return state.averaged, rest if state.ema is None else {**rest, "params": state.params}


def _join(params: Params, rest: dict[str, Any]) -> TrainState:
    own = {**rest, "key": jax.random.wrap_key_data(rest["key"])}
    if "params" not in rest:
        return TrainState(params=params, ema=None, **own)
    return TrainState(ema=params, **own)
