"""An update that is not finite changes nothing but the count; the first one is named, and a hundred in a row stop."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import train_flags
from helpers import lenient_optax, mlp_vae

from vae_jax import guard
from vae_jax.config import Config
from vae_jax.core import Examples
from vae_jax.data.inputs import DataInfo
from vae_jax.objectives import negative_elbo
from vae_jax.run import checkpoints, diagnosis
from vae_jax.update import init_state, make_train, make_update

VAE = mlp_vae((4,))
OPTIMIZER = lenient_optax(optax.adam(0.01))
FINE = jnp.full((3, 4), 0.5)


def objective(params, key, x, vae):
    """The ELBO, spoilt in the way that x[0, 0] names."""
    loss, metrics = negative_elbo(params, key, x, vae)
    kind, leaf = x[0, 0], jax.tree.leaves(params)[0]
    zero = jnp.sum(leaf - jax.lax.stop_gradient(leaf))

    def nan(name, value):
        return jnp.where(kind == SPOILT[name], jnp.nan, value)

    metrics = {name: nan(name, value) for name, value in metrics.items()}
    loss = nan("loss", nan("kl", nan("log_likelihood", loss)))
    # Of value 0: the slope of a square root at 0 is not finite, and the square of 1e30 neither.
    beside = jnp.where(kind == SPOILT["gradient"], 0.0, 1.0)
    root = jnp.sqrt(jnp.abs(zero) + beside) - beside
    return loss + root + jnp.where(kind == SPOILT["overflow"], 1e30, 0.0) * zero, metrics


SPOILT = {"elbo": -1.0, "log_likelihood": 2.0, "kl": 3.0, "loss": 4.0, "gradient": 5.0, "overflow": 6.0}


def spoil(kind):
    return FINE.at[0, 0].set(SPOILT[kind])


@pytest.fixture(scope="module")
def update():
    return jax.jit(make_update(VAE, objective, OPTIMIZER, ema_decay=0.9))


@pytest.fixture
def state():
    return jax.jit(lambda key: init_state(VAE, OPTIMIZER, key, FINE, ema=True))(jax.random.key(0))


def numbers(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema))]


@pytest.mark.parametrize("kind", ("log_likelihood", "kl", "loss", "gradient", "overflow"))
def test_an_update_that_is_not_finite_is_skipped_counted_and_named(update, state, kind):
    state, metrics = update(state, FINE)
    assert metrics["skipped"] == 0 and state.guard == (0, 0, -1, 0)
    before = numbers(state)

    state, metrics = update(state, spoil(kind))
    assert metrics["skipped"] == 1 and state.step == 2
    jax.tree.map(np.testing.assert_array_equal, numbers(state), before)
    term = guard.TERMS[int(state.guard.term)]
    assert state.guard[:3] == (1, 1, 1) and term == {"overflow": "gradient"}.get(kind, kind)

    state, _ = update(state, spoil("loss"))
    assert state.guard == (2, 2, 1, guard.TERMS.index(term)), "the first one stays"
    assert guard.describe(state.guard) == (
        f"2 updates skipped so far, the first at step 1, where its {term} was not finite"
    )
    state, metrics = update(state, FINE)
    assert metrics["skipped"] == 0 and state.guard[:2] == (2, 0)
    assert any(np.any(a != b) for a, b in zip(numbers(state), before, strict=True))


def test_a_skipped_step_leaves_the_ones_after_it_their_keys_and_the_averages_their_examples(state):
    train = jax.jit(make_train(make_update(VAE, objective, OPTIMIZER, ema_decay=0.9), 3))
    state, sums = train(state, Examples(jnp.concatenate([FINE, spoil("kl")]), None), jnp.int32(2))
    assert int(state.guard.skipped) == float(sums["skipped"]) == 1
    assert all(np.isfinite(value) for value in sums.values())
    np.testing.assert_allclose(sums["loss"], -sums["elbo"], rtol=1e-5)


def test_a_hundred_in_a_row_stop_the_run_for_good(update, state):
    bad = spoil("kl")
    for _ in range(guard.MAX_IN_A_ROW - 1):
        state, _ = update(state, bad)
    assert not guard.is_lost(state.guard, 500, 1000)
    state, _ = update(state, bad)
    before = numbers(state)
    for x in (bad, FINE):
        state, metrics = update(state, x)
        assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, numbers(state), before)
    assert state.guard[1:] == (guard.MAX_IN_A_ROW, 0, guard.TERMS.index("kl"))
    assert guard.is_lost(state.guard, 500, 1000)


def test_members_side_by_side_are_guarded_one_by_one(update, state):
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, state)
    states, metrics = jax.vmap(update)(states, jnp.stack([FINE, spoil("loss")]))
    np.testing.assert_array_equal(metrics["skipped"], [0, 1])
    kept = [np.array_equal(own[1], old) for own, old in zip(numbers(states), numbers(state), strict=True)]
    moved = [np.array_equal(own[0], old) for own, old in zip(numbers(states), numbers(state), strict=True)]
    assert all(kept) and not any(moved)


@pytest.mark.parametrize(
    ("skipped", "in_a_row", "step", "lost"),
    [(27, 27, 27, True), (14, 14, 27, True), (14, 14, 26, False), (26, 13, 27, False), (26, 0, 27, False)],
)
def test_a_run_whose_last_half_was_skipped_is_lost(skipped, in_a_row, step, lost):
    assert guard.is_lost(guard.Guard(skipped, in_a_row, 0, 0), step, 27) is lost


@pytest.mark.parametrize(
    ("step", "fields", "value_range", "num_steps", "saved", "advice"),
    [
        (0, {}, (-3, 700), 200, False, "The data goes from -3 to 700. Give --config.standardize=true."),
        (0, {}, (-900, 0), 200, False, "The data goes from -900 to 0. Give --config.standardize=true"),
        (0, {"standardize": True}, (-900, 0), 200, False, "kl was not finite. No update had been made"),
        (0, {}, (0, 1), 200, False, "No update had been made. Choose another likelihood"),
        (
            5,
            {},
            (0, 1),
            200,
            False,
            "Give a learning rate below 0.001 or --config.clip_norm=1 or --config.warmup_steps=20.",
        ),
        (5, {"warmup_steps": 20, "clip_norm": 0.5}, (0, 1), 200, False, "Give a learning rate below 0.001."),
        (5, {"clip_norm": 2.0}, (0, 1), 9, True, "below 0.001 or --config.clip_norm=1. Give --restart too"),
        (5, {}, (0, 700), 200, False, "Give --config.standardize=true. Give a learning rate below 0.001"),
    ],
)
def test_the_advice_is_of_the_run(step, fields, value_range, num_steps, saved, advice):
    seen = guard.Guard(107, 100, step, 1)
    data = DataInfo((4,), (), value_range, 1000, 0, 100, "", None)
    config = Config(**{"likelihood": "gaussian"} | fields)
    message = str(diagnosis.lost_error(seen, config, data, num_steps, saved))
    assert f"lost: 107 updates skipped so far, the first at step {step}, where its kl was not finite. " in message
    assert advice in message and ("--restart" in message) is saved


def test_a_run_that_is_lost_ends_in_one_line(train_py, train, tmp_path, capsys):
    """And its advice needs no --restart, since nothing was saved."""
    flags = train_flags(tmp_path / "run", learning_rate=1e30, optimizer="sgd", batch_size=10)
    assert train_py.console.run(train_py.main, flags) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "The run is lost: " in line and "a learning rate below 1e+30" in line and "--restart" not in line
    assert out == ""
    assert train(tmp_path / "run", learning_rate=1e-3, optimizer="sgd", batch_size=10, num_epochs=1)["step"] == 150


@pytest.mark.robust
def test_a_run_that_learned_nothing_ends_so_and_its_advice_helps(train_py, train, tmp_path, no_pictures, capsys):
    x = np.random.default_rng(0).normal(500, 200, (100, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    fields = {"dataset": tmp_path / "x.npy", "likelihood": "gaussian", "batch_size": 30}
    for _ in range(2):  # the second finds it at its end
        with jax.numpy_dtype_promotion("standard"):
            assert train_py.console.run(train_py.main, train_flags(tmp_path / "run", **fields)) == 2
        out, err = capsys.readouterr()
        last = err.splitlines()[-1]
        assert out == "" and "lost: 6 updates skipped so far, the first at step 0, where its log_likelihood" in last
        assert f"from {x.min():g} to {x.max():g}. Give --config.standardize=true" in last
        assert "Give --restart too" in last
    assert checkpoints.load(tmp_path / "run").step == 6
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    records = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [(record["split"], record["loss"]) for record in records] == [("train", None), ("test", None)] * 2

    result = train(tmp_path / "run", "--restart", standardize="true", **fields)
    assert result["step"] == 6 and result["loss"] < 30  # three times log(200) is 16


def test_what_was_skipped_is_in_the_metrics(train, tmp_path):
    train(tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record.get("skipped") for record in records] == [0, None, 0, None]


def test_one_update_is_one():
    assert guard.describe(guard.Guard(1, 1, 3, 0)).startswith("1 update skipped so far, the first at step 3, ")
