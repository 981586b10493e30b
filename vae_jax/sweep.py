"""Many runs in one program: members that differ in seed, beta and learning rate, trained side by side.

Each member is an ordinary run: its directory is the one that train.py writes for its config, and resumes.
"""

import json
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import (
    checkpoints,
    console,
    ensemble,
    evaluate,
    guard,
    inputs,
    metrics,
    models,
    objectives,
    pictures,
    runs,
    views,
)
from vae_jax.config import Config
from vae_jax.ensemble import Traced, take
from vae_jax.errors import UserError
from vae_jax.update import TrainState

COLUMNS = ("loss", "elbo", "nll", "active_units")  # of the table; in nats, but for the last


def sweep(options: Namespace) -> str:
    """Train the configs `options.members`, write SWEEP_DIR/sweep.json and return its table in Markdown.

    UserError before any training for a config that cannot be trained, or a directory that holds another run.
    """
    # What the members share: nothing of it depends on what differs between them.
    if options.members[0].stream:
        raise UserError(
            "A sweep trains on examples in memory, and stream is true. Train its members one by one with train.py, or "
            "set --config.stream=false."
        )
    members = [inputs.absolute(member) for member in options.members]
    config, run_dirs = members[0], [options.sweep_dir / name for name in names(members)]
    data, examples, split, held_out, label = inputs.load(config, options.data_dir)
    vae = models.build(config, data)
    if options.restart or not all(checkpoints.steps(run_dir) for run_dir in run_dirs):
        vae = checkpoints.begin_from(vae, config, data)
    objective, *_ = (objectives.build(member) for member in members)
    steps_per_epoch = data.num_train // config.batch_size
    num_steps = config.num_epochs * steps_per_epoch

    traced, states = ensemble.traced_of(members), ensemble.init_states(vae, members, steps_per_epoch, examples.x)
    train = ensemble.make_train(vae, objective, config, steps_per_epoch)
    evaluate_member = ensemble.make_evaluate(vae, objectives.build_evaluation(config))
    means: list[Any] = [None] * len(members)

    def evaluated(i: int) -> dict[str, np.ndarray]:
        pair = take((states.averaged, traced.beta), i)
        values, means[i] = evaluate_member(pair, jax.random.key(0), held_out)
        return values

    def draw(i: int, folder: Path) -> None:
        trained = checkpoints.Restored(members[i], data, vae, take(states.averaged, i), step)
        views.draw_run(folder, trained, held_out, label, means[i])

    with ExitStack() as stack:
        # Those that exist first: a refusal leaves nothing new.
        for run_dir, member in sorted(zip(run_dirs, members, strict=True), key=lambda pair: not pair[0].exists()):
            stack.enter_context(runs.open_run(run_dir, member, data, restart=options.restart))
        stopped = stack.enter_context(console.stop_signals())
        states, totals = _resume(run_dirs, states)
        step = int(states.step[0])
        if step:
            console.say(f"{options.sweep_dir}: resumed at step {step} of {num_steps}")
        states, _ = train(states, traced, examples, jax.device_put(np.int32(0)))
        bar = console.bar(total=num_steps, initial=step, unit="step")
        chunk, saved = 1, time.monotonic()

        while step < num_steps and not stopped():  # as in train.py
            start = time.monotonic()
            count = min(chunk, steps_per_epoch - step % steps_per_epoch)
            states, sums = train(states, traced, examples, jax.device_put(np.int32(count)))
            sums, seen = jax.device_get((sums, states.guard))
            seconds = time.monotonic() - start
            guards = [guard.Guard(*each) for each in zip(*seen, strict=True)]
            for run_dir, each in zip(run_dirs, guards, strict=True):
                guard.stop_if_lost(each, run_dir.name)
            own = [{name: values[i] for name, values in sums.items()} for i in range(len(members))]
            totals = [metrics.add(old, new, count, seconds) for old, new in zip(totals, own, strict=True)]
            step, chunk = step + count, max(1, int(count / seconds))
            bar.update(count)
            if step % (config.eval_epochs * steps_per_epoch) and step < num_steps:
                if time.monotonic() > saved + checkpoints.MAX_SECONDS:
                    for i, run_dir in enumerate(run_dirs):
                        checkpoints.save(run_dir, take(states, i), totals[i])
                    saved = time.monotonic()
                continue

            for i, run_dir in enumerate(run_dirs):
                values = objectives.split_loss(members[i], evaluated(i))
                at: dict[str, Any] = {"step": step, "epoch": step / steps_per_epoch}
                trained = {**at, "split": "train", **metrics.averages(totals[i], config.batch_size)}
                record = {**at, "split": split, **values, "active_units": evaluate.active_units(means[i])}
                rate = trained["examples_per_second"]
                line = metrics.describe(record, rate, (num_steps - step) * config.batch_size / rate)
                console.say(f"{run_dir.name}  {line}")
                if trained["skipped"]:
                    console.say(f"{run_dir.name}  {guard.describe(guards[i])}")
                metrics.append(run_dir, trained, record)
                totals[i] = {}
                checkpoints.save(run_dir, take(states, i), {}, record["loss"])
                if config.picture_epochs and at["epoch"] % config.picture_epochs == 0:
                    draw(i, run_dir / f"epoch-{at['epoch']:g}")
            saved = time.monotonic()

        bar.close()
        for i, run_dir in enumerate(run_dirs):
            checkpoints.save(run_dir, take(states, i), totals[i])

        for i, run_dir in enumerate(run_dirs):
            if means[i] is None and not (run_dir / "curves.png").exists():
                evaluated(i)
            if means[i] is not None:
                draw(i, run_dir)
                pictures.save_curves(run_dir / "curves.png", metrics.read(run_dir))
    figures = [_figures(run_dir, member) for run_dir, member in zip(run_dirs, members, strict=True)]
    if step < num_steps:
        console.say(f"{options.sweep_dir}: stopped at step {step} of {num_steps}; the same command resumes it")
    elif options.num_samples:
        bound = evaluate.make_evaluate(vae, num_samples=options.num_samples, **models.evaluation_options(config))
        for i, figure in enumerate(figures):
            result = bound(take(states.averaged, i), jax.random.key(0), held_out, console.bar)
            summary = evaluate.summarize(result, options.num_samples)
            kept = ("nll", "active_units", "num_samples")
            figure |= {name: value for name, value in summary.items() if name.startswith(kept)}
    rows = table(figures)
    text = json.dumps({"split": split, "table": rows, "members": figures}, indent=2)
    metrics.write_text(options.sweep_dir / "sweep.json", text + "\n")
    return markdown(rows, split, options.num_samples)


def names(members: Sequence[Config]) -> list[str]:
    """A name for each member, of its seed and what else differs: seed-0_beta-4."""
    varied = ["seed", *(name for name, values in ensemble.traced_of(members)._asdict().items() if values is not None)]
    return ["_".join(f"{name}-{_short(getattr(member, name))}" for name in varied) for member in members]


def table(figures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each beta and learning rate the mean over seeds and its standard error `_se`, None for one seed."""
    groups: dict[tuple[float, ...], list[dict[str, Any]]] = {}
    for own in figures:
        groups.setdefault(tuple(own[name] for name in Traced._fields), []).append(own)
    rows = []
    for values, group in groups.items():
        row: dict[str, Any] = {**dict(zip(Traced._fields, values, strict=True)), "num_seeds": len(group)}
        for name in COLUMNS:
            if all(name in own for own in group):
                column = [own[name] for own in group]
                row[name], row[f"{name}_se"] = evaluate.mean(column), evaluate.standard_error(column)
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]], split: str, num_samples: int | None) -> str:
    """The table for a person. split, num_samples: of its figures."""
    shown = [name for name in COLUMNS if all(name in row for row in rows)]
    heads = [f"{name} ({split}, K = {num_samples})" if name == "nll" else f"{name} ({split})" for name in shown]
    lines = [[*Traced._fields, "seeds", *heads]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        errors = [row[f"{name}_se"] for name in shown]
        cells = [f"{row[name]:.3f} ± {_or_dash(error)}" for name, error in zip(shown, errors, strict=True)]
        lines.append([*(_short(row[name]) for name in Traced._fields), str(row["num_seeds"]), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _resume(run_dirs: Sequence[Path], states: TrainState):
    """All members at the latest step of which each has a checkpoint: a kill may leave some of them one ahead."""
    steps = [checkpoints.sound_steps(run_dir) for run_dir in run_dirs]
    common = max(set.intersection(*map(set, steps)), default=None)
    if common is None and any(steps):
        there = "; ".join(f"{run_dir.name}: {own}" for run_dir, own in zip(run_dirs, steps, strict=True))
        raise UserError(
            f"The runs in {run_dirs[0].parent} have checkpoints of no step in common ({there}). Begin anew with "
            "--restart, or choose another SWEEP_DIR."
        )
    resumed = [checkpoints.resume(run_dir, take(states, i), common) for i, run_dir in enumerate(run_dirs)]
    alone, totals = zip(*resumed, strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state._replace(key=None) for state in alone))
    return stacked._replace(key=states.key), list(totals)  # a run's key is that of its seed: never another one


def _figures(run_dir: Path, member: Config) -> dict[str, Any]:
    """What differs between members, and the last evaluation of this one."""
    own = {name: getattr(member, name) for name in ("seed", *Traced._fields)}
    return {"run_dir": run_dir.name, **own, **(metrics.read(run_dir) or [{}])[-1]}


def _or_dash(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"


def _short(value: float) -> str:
    return str(value).removesuffix(".0")
