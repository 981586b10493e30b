"""Train many runs side by side in one program: the members of a sweep differ in seed, beta and learning rate.

Each member is an ordinary run, whose directory is what train.py writes for the same config, and can resume.
"""

from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import build, evaluate, guard, progress
from vae_jax.cli import console
from vae_jax.config import Config, differences
from vae_jax.core import Params
from vae_jax.data import inputs
from vae_jax.errors import UserError
from vae_jax.run import checkpoints, diagnosis, ensemble, loop, metrics, runs
from vae_jax.run.ensemble import Varied, take
from vae_jax.show import views

# Of the table. Those of latents are numbers, the others are in nats.
COLUMNS = ("loss", "elbo", "nll", *metrics.LATENTS)


def sweep(options: Namespace) -> tuple[str, int]:
    """Train the configs `options.members` and write SWEEP_DIR/sweep.json. Returns its table and the exit status.

    The table is in Markdown. Finished members are only evaluated. Lost members are marked as lost. Raises UserError
    before any training if a config cannot be trained or a directory holds another run, and at the end if every member
    is lost.
    """
    # The members share all of this: it does not depend on what differs between them.
    if options.members[0].stream:
        raise UserError(
            "A sweep trains on examples in memory, and stream is true. Train its members one by one with train.py, or "
            "set --config.stream=false."
        )
    members = [inputs.absolute(member) for member in options.members]
    run_dirs = _run_dirs(options.sweep_dir, members)
    config, data, examples, split, held_out, label = inputs.load(members[0], options.data_dir, build.make_likelihood)
    members = [replace(member, likelihood_options=config.likelihood_options) for member in members]
    vae = build.make_vae(config, data)
    if options.restart or not all(checkpoints.steps(run_dir) for run_dir in run_dirs):
        vae = checkpoints.begin_from(vae, config, data)
    for member in members:
        build.check_objective(member, vae, data)
    steps_per_epoch = data.num_train // config.batch_size
    num_steps = config.num_epochs * steps_per_epoch

    varied, states = ensemble.varied_of(members), ensemble.init_states(vae, members, steps_per_epoch, examples.x)
    keys, alone = states.key, [take(states, i) for i in range(len(members))]
    totals = [metrics.Totals() for _ in members]
    del states
    train = ensemble.make_train(vae, config, steps_per_epoch)
    evaluate_member = ensemble.make_evaluate(vae, build.make_evaluation_objective(config))
    means: list[Any] = [None] * len(members)

    def evaluated(i: int, params: Params) -> tuple[Any, Any]:
        return evaluate_member((params, take(varied.beta, i)), jax.random.key(0), held_out)

    def draw(i: int, params: Params, step: int, mean: Any, folder: Path) -> None:
        views.draw_run(folder, checkpoints.Restored(members[i], data, vae, params, step), held_out, label, mean)

    def train_group(group: list[int], step: int) -> None:
        """Train the members of `group`, which are all at `step`, until the end or a signal, and save them."""
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(alone[i]._replace(key=None) for i in group))
        # Each member uses the key that its seed gives, even if its checkpoint holds another key.
        states = states._replace(key=take(keys, np.array(group)))
        group_varied = take(varied, np.array(group))
        if step:
            who = f"{len(group)} of {len(members)} runs"
            progress.say(f"{options.sweep_dir}: {who} resumed at step {step} of {num_steps}")
        outcome = loop.train(
            [loop.Member(run_dirs[i], members[i], run_dirs[i].name) for i in group],
            states,
            [totals[i] for i in group],
            split=split,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            advance=lambda states, count: train(states, group_varied, examples, jax.device_put(np.int32(count))),
            evaluate=lambda n, params: evaluated(group[n], params),
            draw=lambda n, *args: draw(group[n], *args),
            stopped=stopped,
            take=take,
        )
        for n, i in enumerate(group):
            alone[i], means[i] = take(outcome.state, n), outcome.means[n]
            checkpoints.save(run_dirs[i], alone[i], {})  # lost members too, so that a later start knows they are lost

    def is_lost(i: int) -> bool:
        return guard.is_lost(jax.device_get(alone[i].guard), int(alone[i].step), num_steps)

    with ExitStack() as stack:
        # Existing directories come first, so that no new directory is left if one of them is refused.
        for i in sorted(range(len(members)), key=lambda i: not run_dirs[i].exists()):
            stack.enter_context(runs.open_run(run_dirs[i], members[i], data, restart=options.restart, is_member=True))
            alone[i], totals[i] = checkpoints.resume(run_dirs[i], alone[i])
        stopped = stack.enter_context(console.stop_signals())
        unfinished_by_step: dict[
            int, list[int]
        ] = {}  # unfinished members by step: a kill may leave some ahead of others
        for i, state in enumerate(alone):
            if state.step < num_steps and not is_lost(i):
                unfinished_by_step.setdefault(int(state.step), []).append(i)
        for step, group in sorted(unfinished_by_step.items()):
            train_group(group, step)

        steps = [int(state.step) for state in alone]
        lost = [is_lost(i) for i in range(len(members))]
        for i, run_dir in enumerate(run_dirs):
            if lost[i]:
                progress.say(f"{run_dir.name} is lost: {guard.describe(jax.device_get(alone[i].guard))}")
                continue
            if means[i] is None and not (run_dir / "curves.png").exists():
                _, means[i] = evaluated(i, alone[i].averaged)
            if means[i] is not None:
                draw(i, alone[i].averaged, steps[i], means[i], run_dir)
        status = stopped()
    figures = [_figures(*own) for own in zip(run_dirs, members, lost, strict=True)]
    unfinished = [step for step, is_lost in zip(steps, lost, strict=True) if step < num_steps and not is_lost]
    if unfinished:
        progress.say(
            f"{options.sweep_dir}: stopped at step {min(unfinished)} of {num_steps}; the same command resumes it"
        )
    elif options.num_samples:
        bound = evaluate.make_evaluate(vae, num_samples=options.num_samples, **build.evaluation_options(config))
        for i, figure in enumerate(figures):
            if not lost[i]:
                result = bound(alone[i].averaged, jax.random.key(0), held_out, progress.bar)
                summary = evaluate.summarize(result, options.num_samples, build.make_codes(config))
                kept = ("nll", *metrics.LATENTS, "num_samples")
                figure |= {name: value for name, value in summary.items() if name.startswith(kept)}
    rows = table(figures)
    text = metrics.to_json({"split": split, "table": rows, "members": figures}, indent=2)
    metrics.write_text(options.sweep_dir / "sweep.json", text + "\n")
    if all(lost):
        reason = diagnosis.lost_error(jax.device_get(alone[0].guard), config, data, num_steps, saved=True)
        raise UserError(f"No run of {options.sweep_dir} has learned anything. {run_dirs[0].name}: {reason}")
    if not unfinished:
        found = {
            run_dirs[i].name: diagnosis.notes(
                members[i], data, figures[i], held_out.x, skipped=int(alone[i].guard.skipped)
            )
            for i in range(len(members))
            if not lost[i]
        }
        _say_once(found)
    return markdown(rows, split, options.num_samples), status if unfinished else 0


def names(members: Sequence[Config]) -> list[str]:
    """Name each member after its seed and whatever else differs between members, such as seed-0_beta-4."""
    varied = ["seed", *(name for name, values in ensemble.varied_of(members)._asdict().items() if values is not None)]
    return ["_".join(f"{name}-{_short(getattr(member, name))}" for name in varied) for member in members]


def _run_dirs(sweep_dir: Path, members: Sequence[Config]) -> list[Path]:
    """The directory of each member. It keeps its name from an earlier sweep in which fewer or more fields varied."""
    found = []
    for name, member in zip(names(members), members, strict=True):
        parts = [f"{field}-{_short(getattr(member, field))}" for field in Varied._fields]
        chosen = [own for size in range(len(parts) + 1) for own in combinations(parts, size)]
        paths = [sweep_dir / own for own in (name, *("_".join((f"seed-{member.seed}", *own)) for own in chosen))]
        found.append(next((path for path in paths if _is_of(path, member)), paths[0]))
    return found


def _is_of(run_dir: Path, member: Config) -> bool:
    try:
        return not differences(runs.read_run(run_dir)[0], member).keys() - {"num_epochs"}
    except UserError:
        return False


def table(figures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each beta and learning rate, average over the seeds that are not lost; `_se` is the standard error.

    The standard error of a single seed is None, and so is any result that is not a finite number.
    """
    groups: dict[tuple[float, ...], list[dict[str, Any]]] = {}
    for own in figures:
        groups.setdefault(tuple(own[name] for name in Varied._fields), []).append(own)
    rows = []
    for values, group in groups.items():
        kept = [own for own in group if not own["lost"]]
        row: dict[str, Any] = dict(zip(Varied._fields, values, strict=True))
        row |= {"num_seeds": len(kept), "num_lost": len(group) - len(kept)}
        for name in COLUMNS:
            if all(name in own for own in kept):
                column = [nan if own[name] is None else own[name] for own in kept]
                row[name] = evaluate.mean(column) if kept else None
                row[f"{name}_se"] = evaluate.standard_error(column)
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]], split: str, num_samples: int | None) -> str:
    """Write the table as Markdown. split, num_samples: how its figures were measured."""
    shown = [name for name in COLUMNS if all(name in row for row in rows)]
    heads = [f"{name} ({split}, K = {num_samples})" if name == "nll" else f"{name} ({split})" for name in shown]
    lines = [[*Varied._fields, "seeds", *heads]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        cells = [f"{row[name]:.3f} ± {_or_dash(row[f'{name}_se'])}" if row["num_seeds"] else "lost" for name in shown]
        seeds = f"{row['num_seeds']} ({row['num_lost']} lost)" if row["num_lost"] else str(row["num_seeds"])
        lines.append([*(_short(row[name]) for name in Varied._fields), seeds, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _say_once(found: dict[str, dict[str, str]]) -> None:
    """Say the notes of members, by their names: a condition once, for the first member with it, and count the others.

    A note that all members have in the same words is said without a name.
    """
    for condition in dict.fromkeys(condition for notes in found.values() for condition in notes):
        texts = {name: notes[condition] for name, notes in found.items() if condition in notes}
        first, others = next(iter(texts)), f" and {len(texts) - 1} more" if len(texts) > 1 else ""
        shared = len(texts) == len(found) and len(set(texts.values())) == 1
        progress.say(texts[first] if shared else f"{first}{others}: {texts[first]}")


def _figures(run_dir: Path, member: Config, lost: bool) -> dict[str, Any]:
    """What differs between members, and the last evaluation of this member; its figures are None if it is lost."""
    own = {name: getattr(member, name) for name in ("seed", *Varied._fields)}
    last = (metrics.read(run_dir) or [{}])[-1]
    if lost:
        last |= dict.fromkeys(last.keys() - {"step", "epoch", "split"})
    return {"run_dir": run_dir.name, **own, "lost": lost, **last}


def _or_dash(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"


def _short(value: float) -> str:
    return str(value).removesuffix(".0")
