"""The contenders of the benchmark head_to_head.py are the same model; nothing here is timed."""

import json
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import head_to_head
import head_to_head_jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from conftest import ROOT
from measure import images

from vae_jax import build
from vae_jax.data.inputs import make_prepare
from vae_jax.errors import UserError
from vae_jax.losses import make_objective
from vae_jax.optimizers import make_optimizer, make_schedule
from vae_jax.update import make_training


@pytest.fixture(scope="module")
def torch_side():
    """The contenders of PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch", reason="torch is not installed: python -m pip install -e '.[benchmark]'")
        import head_to_head_torch
    return head_to_head_torch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, x_train=images(120), x_test=images(20))
    return str(path)


def made(model, data):
    """The config in small sizes, its data, its VAE, and weights none of which is 0."""
    config = head_to_head.configs(data, tiny=True)[model]
    own = head_to_head_jax.load(config)
    params = head_to_head_jax.first_params(config, own)
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    leaves = [np.float32(leaf + 0.1 * rng.standard_normal(leaf.shape)) for leaf in leaves]
    return config, own, build.make_vae(config, own.data), jax.tree.unflatten(structure, leaves)


def test_grey_images_are_probabilities_whatever_their_type():
    for x in (np.full((2, 2, 2, 1), 51, np.uint8), np.full((2, 4), 0.2)):
        own = SimpleNamespace(examples=SimpleNamespace(x=x))
        np.testing.assert_allclose(head_to_head_jax.grey(own), np.full((2, 4), 0.2), rtol=1e-6)


@pytest.mark.parametrize("model", ("mnist_fast", "plain"))
def test_converted_weights_have_the_same_densities(model, data, torch_side):
    import torch

    config, own, vae, params = made(model, data)
    vae = build.make_vae(replace(config, compute_dtype="float32"), own.data)
    network = torch_side.load(torch_side.Model(head_to_head_jax.setting(config)), params)
    jax.tree.map(np.testing.assert_array_equal, torch_side.to_params(network), params)

    x, rng = np.asarray(own.held_out.x), np.random.default_rng(1)
    z = np.float32(rng.standard_normal((len(x), config.latent_dim)))
    q, p_x = vae.encode(params, jnp.asarray(x)), vae.decode(params, jnp.asarray(z))
    with torch.no_grad():
        flat = torch.from_numpy(x.reshape(len(x), -1).copy())
        mean, log_var = network.encode(flat)
        logits = network.decoder(torch.from_numpy(z))
        log_px, log_p = torch_side.log_likelihood(logits, flat), network.log_prior(torch.from_numpy(z))
        log_q = torch_side.gaussian_log_prob(torch.from_numpy(z), mean, log_var)
    close = lambda a, b: np.testing.assert_allclose(np.asarray(b), a.numpy(), rtol=1e-5, atol=1e-4)  # noqa: E731
    close(logits, p_x.logits.reshape(len(x), -1))
    close(log_px + log_p, p_x.log_prob(jnp.asarray(x)) + vae.prior(params).log_prob(jnp.asarray(z)))
    close(log_q, q.log_prob(jnp.asarray(z)))


@pytest.mark.parametrize("model", ("mnist_fast", "plain"))
def test_the_loss_and_its_gradient_are_those_of_vae_jax(model, data, torch_side):
    import torch

    config, own, vae, params = made(model, data)
    config = replace(config, compute_dtype="float32")
    vae = build.make_vae(config, own.data)
    network = torch_side.load(torch_side.Model(head_to_head_jax.setting(config)), params)
    key, batch = jax.random.key(3), own.examples.x[:16]
    x = make_prepare(config)(jax.random.key(4), batch)
    (loss, _), grads = jax.value_and_grad(make_objective(config), has_aux=True)(params, key, x, vae)

    eps = jax.random.normal(jax.random.clone(key), (1, 16, config.latent_dim))[0]  # those that the posterior draws
    u = 1.5 - jnp.asarray(x).reshape(16, -1)  # below 1, the grey value given here, where the pixel is 1
    network.double()  # else rounding hides what a small gradient is
    value = torch_side.negative_elbo(
        network,
        torch.ones(16, 784, dtype=torch.float64),
        *(torch.from_numpy(np.array(a, np.float64)) for a in (u, eps)),
        stl=config.estimator == "stl",
        autocast=False,
    )
    value.backward()
    assert float(value.detach()) == pytest.approx(float(loss), rel=1e-5)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.grad)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), torch_side.to_params(network), grads
    )


@pytest.mark.parametrize("model", ("mnist_fast", "plain"))
def test_steps_with_the_same_gradients_are_those_of_vae_jax(model, data, torch_side):
    """Adam, the schedule and the average of the weights, without a draw."""
    import torch

    config, own, vae, params = made(model, data)
    config = replace(config, compute_dtype="float32")
    steps = head_to_head_jax.steps_per_epoch(config, own)
    x = torch.from_numpy(head_to_head_jax.grey(own))
    loop = torch_side.Loop(head_to_head_jax.setting(config), x, params, "float32, not compiled")
    norm = lambda weights: sum((weight**2).sum() for weight in weights)  # noqa: E731
    loop.loss = lambda rows: norm(loop.weights)

    def objective(params, key, x, vae):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), {}

    init, one = make_training(vae, objective, make_optimizer(config, steps), ema_decay=config.ema_decay)
    state = init(jax.random.key(0), own.examples.x)
    state = state._replace(params=params, ema=jax.tree.map(jnp.copy, params) if config.ema_decay else None)
    one = jax.jit(one)
    for _ in range(2 * steps):
        state, _ = one(state, own.examples.x[:2])
    loop.train(2)
    for _ in range(2 * steps - 2):
        loop.step(torch.arange(2))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, torch_side.to_params(loop.averaged), jax.device_get(state.averaged))
    assert make_schedule(config, steps)(2 * steps - 1) > 0
    loop.begin()
    jax.tree.map(np.testing.assert_array_equal, torch_side.to_params(loop.averaged), params)
    assert not any(moment.any() for moments in loop.optimizer.state.values() for moment in moments.values())


def test_an_epoch_counts_only_if_all_images_have_its_nll():
    exact = [90.0, 88.0, 86.5, 86.0, 85.0]
    for shift in (-3, -0.4, 0, 0.2):
        assert head_to_head.first_at([value + shift for value in exact], 86.76, exact.__getitem__) == 2
    assert head_to_head.first_at(exact, 91, exact.__getitem__) == 0
    assert head_to_head.first_at(exact, 80, exact.__getitem__) is None
    asked = []
    head_to_head.first_at(exact, 86.76, lambda i: asked.append(i) or exact[i])
    assert asked == [2]


def test_the_figures_of_a_run_are_those_of_its_weights():
    trained = head_to_head_jax.Trained([60.0, 120.0, 180.0], [3.0, 2.0, 1.0], [90.0, 86.0, 85.0], 7.0, "a loop")
    row = head_to_head.judged(trained, lambda params, num: params + (1.0 if num == 5 else 0.0), 86.76, 5)
    assert row["nll_each"] == [90.0, 86.0, 85.0]
    assert (row["minutes"], row["epoch"], row["nll"], row["minutes_end"], row["nll_end"]) == (2.0, 2, 86.0, 3.0, 85.0)


def test_a_config_that_the_contenders_would_train_in_part_is_refused():
    config = head_to_head.configs("mnist", tiny=False)["mnist_fast"]
    setting = head_to_head_jax.setting(config)
    assert (setting.num_couplings, setting.hidden_size, setting.stl, setting.schedule) == (6, 128, True, "cosine")
    for fields, word in (
        ({"beta": 2.0}, "beta"),
        ({"prior": "vamp"}, "its parts"),
        ({"schedule": "burda"}, "its parts"),
    ):
        with pytest.raises(UserError, match=word):
            head_to_head_jax.setting(replace(config, **fields))


@pytest.mark.robust
def test_the_benchmark_runs_in_small_sizes_and_says_what_is_not_installed(tmp_path, capfd, monkeypatch):
    results = tmp_path / "lines.jsonl"
    monkeypatch.setattr(sys, "argv", ["head_to_head.py", "--tiny", f"--results={results}"])
    head_to_head.main()
    out, err = capfd.readouterr()
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    names = {(row["model"], row["contender"], row["compute_dtype"]) for row in rows}
    every = set(head_to_head.contenders(head_to_head.configs("mnist", tiny=True)["mnist_fast"], full=False))
    for model, contender, dtype in every - names:
        assert contender != "vae_jax" and f"{model}, {contender}, {dtype}, seed 0: skipped: " in err
    assert out.count("\n| ") == len(rows) + 1
    for row in rows:
        assert len(row["minutes_each"]) == len(row["nll_each"]) == len(row["loss_each"]) == 2
        assert row["minutes"] is None and np.isfinite(row["nll_end"])
    fast = [row["loss_each"] for row in rows if row["model"] == "mnist_fast"]
    np.testing.assert_allclose(fast, np.broadcast_to(fast[0], np.shape(fast)), rtol=0.02)


def test_the_page_has_what_was_measured():
    rows = head_to_head.read(head_to_head.RESULTS)
    assert not rows or head_to_head.table(rows) in (ROOT / "tests/benchmarks/README.md").read_text()


def test_the_picture_shows_the_contenders_with_the_model_of_the_recipe(tmp_path, monkeypatch):
    row = {"model": "mnist_fast", "contender": "PyTorch", "compute_dtype": "float32"}
    rows = [row | {"minutes": 2.0, "nll": 86.5, "minutes_end": 3.0, "nll_end": 85.9}, row | {"model": "plain"}]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f"{json.dumps(own)}\n" for own in rows))
    monkeypatch.setattr(recipes, "HEAD_TO_HEAD", path)
    monkeypatch.setattr(recipes, "PICTURE", tmp_path / "picture.png")
    assert recipes.contenders() == {"PyTorch, float32": [(2.0, 86.5), (3.0, 85.9)]}
    recipes.draw(recipes.table(recipes.read()))
    assert recipes.PICTURE.stat().st_size > 10_000
