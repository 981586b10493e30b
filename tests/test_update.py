"""The learning step is a plain optax loop, and training many of them in one call changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import lenient_optax, mlp_vae

from vae_jax.config import Config
from vae_jax.core import VAE, Examples
from vae_jax.errors import UserError
from vae_jax.objectives import negative_elbo
from vae_jax.optimizers import make_optimizer, make_schedule, make_schedules
from vae_jax.update import init_state, make_train, make_training, make_update

BATCH_SIZE, STEPS_PER_EPOCH = 4, 5
NUM_EXAMPLES = BATCH_SIZE * STEPS_PER_EPOCH + 2
SMALL = mlp_vae((4,))
CONSTANT = VAE(lambda key, x: {"p": jnp.ones(())}, lambda params, x, context: context, None, None)


class Training(NamedTuple):
    """A training function, how it starts, and the shapes of the batches that it was traced with."""

    train: Callable
    start: Callable
    traces: list

    def run(self, examples, calls):
        """The state and the sums of metrics after calls of so many steps."""
        state, metrics = self.start(examples.x), []
        for num_steps in calls:
            state, sums = self.train(state, examples, device(num_steps))
            metrics.append(sums)
        return state, metrics


@pytest.fixture(scope="module")
def training():
    """Everything on: a schedule, clipping and an average of the weights."""
    config = Config(schedule="cosine", warmup_steps=3, clip_norm=1.0, num_epochs=4, ema_decay=0.9, learning_rate=0.01)
    optimizer = optimizer_of(config)
    traces = []

    def objective(params, key, x, vae):
        traces.append(x.shape)
        return negative_elbo(params, key, x, vae)

    update = make_update(SMALL, objective, optimizer, ema_decay=config.ema_decay)
    return Training(jit_train(update), starter(SMALL, optimizer, ema=True), traces)


@pytest.fixture(scope="module")
def examples():
    return Examples(jax.random.uniform(jax.random.key(1), (NUM_EXAMPLES, 4)), None)


@pytest.fixture
def x(examples):
    return examples.x


def starter(vae, optimizer, *, ema=False):
    jitted = jax.jit(lambda key, x: init_state(vae, optimizer, key, x, ema=ema))
    return lambda x, seed=0: jitted(jax.random.key(seed), x)


def optimizer_of(config, steps_per_epoch=STEPS_PER_EPOCH):
    with jax.numpy_dtype_promotion("standard"):  # as in `lenient_optax`
        return lenient_optax(make_optimizer(config, steps_per_epoch))


def jit_train(update):
    """Jitted as train.py does."""
    return jax.jit(make_train(update, BATCH_SIZE), donate_argnums=0)


def fixed_noise(params, key, x, vae):
    """An objective that depends on no key of the step."""
    return negative_elbo(params, jax.random.key(5), x, vae)


def device(n):
    return jax.device_put(np.int32(n))


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(raw(a), raw(b)), a, b))


def raw(a):
    return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a


def assert_close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), a, b)


# one step


@pytest.mark.parametrize("optimizer", (optax.sgd(0.1), optax.adam(0.01)), ids=("sgd", "adam"))
def test_update_is_a_step_of_optax(x, optimizer):
    optimizer, batch = lenient_optax(optimizer), x[:BATCH_SIZE]
    state = starter(SMALL, optimizer)(x)
    params, opt_state = state.params, state.opt_state
    update = jax.jit(make_update(SMALL, fixed_noise, optimizer))

    @jax.jit
    def by_hand(params, opt_state):
        loss, grads = jax.value_and_grad(lambda params: fixed_noise(params, None, batch, SMALL)[0])(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), opt_state, loss

    for step in range(4):
        params, opt_state, loss = by_hand(params, opt_state)
        state, metrics = update(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], -metrics["elbo"], rtol=1e-6)
        assert state.step == step + 1
    assert_close(state.params, params)


def test_every_draw_of_every_step_has_a_key_of_its_own(x):
    prepare = lambda key, x: jnp.broadcast_to(jax.random.uniform(key), x.shape)  # noqa: E731

    def objective(params, key, x, vae):
        return params["p"] ** 2, {"prepare": x[0, 0], "objective": jax.random.uniform(key)}

    optimizer = optax.sgd(0.1)
    update = jax.jit(make_update(CONSTANT, objective, optimizer, prepare=prepare))
    draws = []
    for seed in (0, 1):
        state = starter(CONSTANT, optimizer)(x, seed)
        for _ in range(3):
            state, metrics = update(state, x)
            draws += [float(metrics["prepare"]), float(metrics["objective"])]
    assert len(set(draws)) == len(draws) == 12


def test_the_step_of_a_conditional_vae_takes_a_context(x):
    vae, optimizer = mlp_vae((4,), context_size=3), optax.sgd(0.1)
    update, state = jax.jit(make_update(vae, fixed_noise, optimizer)), starter(vae, optimizer)(x)
    losses = [update(state, x, jnp.broadcast_to(label, (len(x), 3)))[1]["loss"] for label in jnp.eye(3)]
    assert len(set(map(float, losses))) == 3


def test_beta_may_rise_during_a_run(x):
    schedules = make_schedules(Config(beta=2.0, beta_warmup_steps=4))
    update = jax.jit(make_update(SMALL, negative_elbo, optax.sgd(0.1), schedules=schedules))
    state = starter(SMALL, optax.sgd(0.1))(x)
    for beta in (0.0, 0.5, 1.0, 1.5, 2.0, 2.0):
        with jax.numpy_dtype_promotion("standard"):  # the schedules of optax mix floats and whole numbers
            state, metrics = update(state, x)
        np.testing.assert_allclose(metrics["loss"], beta * metrics["kl"] - metrics["log_likelihood"], rtol=1e-5)
    assert make_schedules(Config()) == {}


@pytest.mark.parametrize(("warmup", "expected"), [(0, [3, 3, 3]), (2, [0, 1.5, 3])])
def test_another_beta_may_be_given(warmup, expected):
    schedule = make_schedules(Config(beta_warmup_steps=warmup), beta=jnp.float32(3))["beta"]
    np.testing.assert_allclose([schedule(step) for step in range(3)], expected)


# averages of the weights


def test_the_average_of_the_weights_is_its_recurrence(x):
    optimizer = optax.sgd(0.3)
    update = jax.jit(make_update(SMALL, negative_elbo, optimizer, ema_decay=0.2))
    state = starter(SMALL, optimizer, ema=True)(x)
    assert same(state.ema, state.params)
    expected = jax.tree.map(np.asarray, state.params)
    for step in range(8):
        state, _ = update(state, x)
        decay = min(0.2, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * np.asarray(p), expected, state.params)
        assert_close(state.ema, expected)
    assert state.averaged is state.ema and not same(state.ema, state.params)


def test_without_an_average_the_weights_are_evaluated(x):
    state = starter(SMALL, optax.sgd(0.1))(x)
    assert state.ema is None and state.averaged is state.params


# many steps


def test_training_compiles_once_whatever_the_number_of_steps(training, examples):
    training.run(examples, (1,))
    compiled = len(training.traces)
    state, _ = training.run(examples, (1, 4, 2, 3, 5, 1))
    assert state.step == 16
    assert len(training.traces) == compiled
    assert set(training.traces) == {(BATCH_SIZE, 4)}


@pytest.mark.parametrize("calls", ((1,) * 10, (2, 3, 4, 1), (4, 1, 5), (10,), (3, 7)), ids=str)
def test_any_split_of_the_steps_into_calls_is_bit_equal(training, examples, calls):
    whole, whole_metrics = training.run(examples, (5, 5))
    split, metrics = training.run(examples, calls)
    assert whole.step == 10 and same(split, whole)
    for name in whole_metrics[0]:
        np.testing.assert_allclose(sum(m[name] for m in metrics), sum(m[name] for m in whole_metrics), rtol=1e-6)


def test_a_run_is_that_of_its_seed(training, examples):
    starts = [training.start(examples.x, seed) for seed in (0, 0, 1)]
    first, again, other = (training.train(state, examples, device(2))[0].params for state in starts)
    assert same(first, again) and not same(first, other)


def test_a_batch_larger_than_the_data_is_refused(x):
    state = starter(SMALL, optax.sgd(0.1))(x)
    with pytest.raises(ValueError, match=f"batch_size is {BATCH_SIZE}; expected at most the 3 examples"):
        make_train(make_update(SMALL, fixed_noise, optax.sgd(0.1)), BATCH_SIZE)(state, Examples(x[:3], None), 1)


def test_zero_steps_change_nothing(training, examples):
    state, metrics = training.run(examples, (0,))
    assert same(state, training.start(examples.x))
    assert all(value == 0 for value in metrics[0].values())


def test_a_call_is_a_loop_of_updates_and_sums_their_metrics(x):
    """In epochs of one step, with the batch sorted, the order of examples cannot matter."""
    optimizer, batch = optax.sgd(0.1), x[:BATCH_SIZE]
    update = make_update(SMALL, fixed_noise, optimizer, prepare=lambda key, x: jnp.sort(x, 0))
    training = Training(jit_train(update), starter(SMALL, optimizer), [])
    trained, metrics = training.run(Examples(batch, None), (1, 1, 1))
    state, one = training.start(batch), jax.jit(update)
    for sums in metrics:
        state, expected = one(state, batch)
        np.testing.assert_allclose(sums["loss"], expected["loss"], rtol=1e-5)
    assert_close(trained.params, state.params)


# the order of examples


@cache
def order_training():
    """Training on one-hot rows, whose metrics are the rows of the batch and the contexts beside them."""

    def objective(params, key, x, vae):
        return params["p"] ** 2, {"rows": jnp.argmax(x, -1), "contexts": jnp.argmax(vae.encode(params, x), -1)}

    optimizer = optax.sgd(0.1)
    return jit_train(make_update(CONSTANT, objective, optimizer)), starter(CONSTANT, optimizer)


def rows_seen(num_examples, num_epochs, seed=0):
    """The rows and the contexts of every epoch, [num_epochs, examples] each."""
    train, start = order_training()
    rows = jnp.eye(num_examples)
    examples, state, seen = Examples(rows, jnp.roll(rows, 3, 1)), start(rows, seed), []
    for _ in range(num_epochs * (num_examples // BATCH_SIZE)):
        state, metrics = train(state, examples, device(1))
        seen.append((metrics["rows"], metrics["contexts"]))
    return np.array(seen).swapaxes(0, 1).reshape(2, num_epochs, -1)


def test_each_epoch_visits_every_example_once_in_another_order():
    epochs, _ = rows_seen(20, 4)
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert all(list(epoch) != list(range(20)) for epoch in epochs)


def test_a_ragged_rest_is_left_out_and_is_another_in_another_epoch():
    epochs, _ = rows_seen(22, 4)
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    left_out = [set(range(22)) - set(epoch) for epoch in epochs]
    assert any(a != b for a, b in pairwise(left_out))


def test_the_order_is_that_of_the_seed():
    epochs, _ = rows_seen(20, 2)
    np.testing.assert_array_equal(rows_seen(20, 2)[0], epochs)
    assert not np.array_equal(rows_seen(20, 2, seed=1)[0], epochs)


def test_a_context_stays_with_its_example():
    rows, contexts = rows_seen(20, 2)
    np.testing.assert_array_equal(contexts, (rows + 3) % 20)


# the device


def test_training_moves_nothing_between_host_and_device(training, examples):
    state, num_steps = training.start(examples.x), device(2)
    with jax.transfer_guard("disallow"):
        state, _ = training.train(state, examples, num_steps)
        state, sums = training.train(state, examples, num_steps)
    assert state.step == 4 and np.isfinite(sums["loss"])


def test_the_state_given_is_donated_and_the_examples_are_not(training, examples):
    state = training.start(examples.x)
    training.train(state, examples, device(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.ema)))
    assert not examples.x.is_deleted()


# optimisers and schedules


def test_clip_norm_bounds_the_gradient():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    for clip_norm, norm in ((0.0, 5.0), (1.0, 1.0), (10.0, 5.0)):
        optimizer = optimizer_of(Config(optimizer="sgd", learning_rate=1.0, clip_norm=clip_norm))
        updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
        np.testing.assert_allclose(np.hypot(updates["a"][0], updates["b"][0, 0]), norm, rtol=1e-6)
        np.testing.assert_allclose(updates["b"] / updates["a"][0], [[4 / 3]], rtol=1e-6)


@pytest.mark.parametrize("warmup", (0, 7))
@pytest.mark.parametrize("schedule", ("constant", "cosine", "burda"))
def test_schedules(schedule, warmup):
    config = Config(schedule=schedule, warmup_steps=warmup, num_epochs=8, learning_rate=0.3)
    rate, total = make_schedule(config, STEPS_PER_EPOCH), 40
    given = make_schedule(replace(config, learning_rate=9.0), STEPS_PER_EPOCH, learning_rate=jnp.float32(0.3))
    for step in range(total + 1):
        if step < warmup:
            expected = 0.3 * step / warmup
        else:
            phase = (step - warmup) / (total - warmup)
            stage = (0, 1, 1, 1, 2, 2, 2, 2, 2)[(step - warmup) // STEPS_PER_EPOCH]
            expected = {
                "constant": 0.3,
                "cosine": 0.15 * (1 + np.cos(np.pi * phase)),
                "burda": 0.3 * 10 ** (-stage / 7),
            }[schedule]
        np.testing.assert_allclose([rate(step), given(step)], [expected] * 2, rtol=1e-5, atol=1e-7)


def test_the_stages_of_burda_et_al_take_their_3280_epochs():
    rate = make_schedule(Config(schedule="burda", num_epochs=3280), 1)
    rates = np.asarray(rate(jnp.arange(3280.0)))
    np.testing.assert_allclose(rates, np.repeat(1e-3 * 10 ** (-np.arange(8) / 7), 3 ** np.arange(8)), rtol=1e-5)


def test_the_learning_rate_follows_the_schedule():
    config = Config(optimizer="sgd", learning_rate=0.5, schedule="cosine", num_epochs=1)
    optimizer = optimizer_of(config, 4)
    grads = {"p": jnp.ones(2)}
    opt_state = optimizer.init(grads)
    for step in range(4):
        updates, opt_state = optimizer.update(grads, opt_state, grads)
        np.testing.assert_allclose(updates["p"], -make_schedule(config, 4)(step) * np.ones(2), rtol=1e-6)


@pytest.mark.parametrize(
    "settings, words",
    (
        ({"optimizer": "adamm"}, ("Unknown optimizer 'adamm'", "Did you mean 'adam'", "sgd")),
        ({"optimizer": "apply_updates"}, ("Unknown optimizer 'apply_updates'", "adam")),
        ({"optimizer": "adam", "optimizer_options": {"momentum": 0.9}}, ("adam", "momentum")),
        ({"warmup_steps": 40, "num_epochs": 8}, ("warmup_steps is 40", "less than", "40 steps")),
    ),
    ids=str,
)
def test_settings_that_do_not_fit_are_one_line_of_error(settings, words):
    with pytest.raises(UserError) as caught:
        optimizer_of(Config(**settings))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_options_reach_the_optimizer():
    config = Config(optimizer="sgd", optimizer_options={"momentum": 0.9}, learning_rate=1.0)
    optimizer, grads = optimizer_of(config), {"p": jnp.ones(1)}
    opt_state = optimizer.init(grads)
    for expected in (1.0, 1.9, 2.71):
        updates, opt_state = optimizer.update(grads, opt_state, grads)
        np.testing.assert_allclose(updates["p"], -expected, rtol=1e-5)


@pytest.mark.parametrize("ema_decay", (0.0, 0.9))
def test_init_and_update_of_one_factory_agree(ema_decay):
    x = jnp.ones((6, 4))
    init, update = make_training(SMALL, negative_elbo, optax.sgd(0.1), ema_decay=ema_decay)
    state, metrics = jax.jit(update)(init(jax.random.key(0), x), x)
    assert (state.ema is not None) == (ema_decay > 0) and metrics["skipped"] == 0
    other = make_update(SMALL, negative_elbo, optax.sgd(0.1), ema_decay=0.9 - ema_decay)
    with pytest.raises(ValueError, match=r"ema_decay is 0\.\d, and the state keeps (an|no) average"):
        jax.eval_shape(other, state, x)
