"""Two latents as one: densities against the parts, bounds, gradients, and every family of the package with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mostly_slow
from helpers import assert_within_errors, jit, members, standard_normal
from scipy.stats import multivariate_normal, norm

from vae_jax import build as builder, generate, hierarchies
from vae_jax.config import Config
from vae_jax.core import VAE, Examples
from vae_jax.data.inputs import DataInfo
from vae_jax.distributions import DiagonalGaussian, FullGaussian
from vae_jax.errors import UserError
from vae_jax.evaluate import make_evaluate, make_evaluate_objective, summarize
from vae_jax.hierarchies import Chain, combine
from vae_jax.losses import make_evaluation_objective, split_loss
from vae_jax.objectives import elbo, importance_bound, log_weights, negative_elbo, negative_iwae

HIERARCHIES = sorted(members(hierarchies, "Hierarchy"))
SHAPE = (4, 4, 1)
DATA = DataInfo(SHAPE, (0, 1, 2), (0.0, 1.0), 100, 0, 10, "0123456789abcdef", None)

every_hierarchy = pytest.mark.parametrize("hierarchy", HIERARCHIES)


def build(hierarchy, **settings):
    options = {"latent_dim": 2, "hidden_sizes": (6, 5)}
    if hierarchy == "ladder":
        options = {"latent_dims": (2,), "hidden_sizes": (6,)}
    return builder.make_vae(
        Config(
            batch_size=5,
            latent_dim=3,
            hidden_sizes=(8,),
            hierarchy=hierarchy,
            hierarchy_options=options,
            **settings,
        ),
        DATA,
    )


def data(num=5):
    return jnp.asarray(np.random.default_rng(0).random((num, *SHAPE)) < 0.4, jnp.float32)


FAMILIES = [
    {},
    {"prior": "mixture"},
    {"posterior": "full_covariance", "prior": "mixture"},
    {"posterior": "flow", "prior": "real_nvp"},
    {"conditional": True, "likelihood": "gaussian_pixel"},
    {"network": "convolutional", "network_options": {"channels": [4]}, "conditional": True},
]
CASES = [(h, f) for h in HIERARCHIES for f in FAMILIES if h != "ladder" or "posterior" not in f]


@pytest.mark.parametrize("hierarchy, settings", CASES, ids=str)
def test_shapes_with_every_family(hierarchy, settings):
    vae = build(hierarchy, **settings)
    context = jnp.zeros((5, 3)) if settings.get("conditional") else None

    def run(key):
        params = vae.init(key, data())
        q = vae.encode(params, data(), context)
        z = q.sample(jax.random.key(1), (7,))
        p = vae.prior(params)
        return (
            q.mean,
            z,
            vae.decode(params, z, context).mean,
            q.log_prob(z),
            p.log_prob(z),
            p.sample(jax.random.key(2), (2,)),
        )

    mean, z, x, log_q, log_p, prior = jax.eval_shape(run, jax.random.key(0))
    assert {name: a.shape for name, a in mean.items()} == {"z1": (5, 3), "z2": (5, 2)}
    assert {name: a.shape for name, a in z.items()} == {"z1": (7, 5, 3), "z2": (7, 5, 2)}
    assert {name: a.shape for name, a in prior.items()} == {"z1": (2, 3), "z2": (2, 2)}
    assert x.shape == (7, 5, *SHAPE) and log_q.shape == log_p.shape == (7, 5)


def linear_gaussian(exact):
    """z2 ~ N(0, 1), z1 | z2 ~ N(a z2, s I), x | z1 ~ N(z1 W, t I), the exact posterior beside a wrong one."""
    rng = np.random.default_rng(0)
    a, w, s, t = rng.normal(size=(1, 2)), rng.normal(size=(2, 3)), 0.5, 0.7
    cov1 = a.T @ a + s * np.eye(2)
    cov_x = w.T @ cov1 @ w + t * np.eye(3)
    gain = np.linalg.solve(cov_x, w.T @ cov1)  # E[z1 | x] = x gain
    post1 = cov1 - cov1 @ w @ gain
    back = np.linalg.solve(cov1, a.T)  # E[z2 | z1] = z1 back
    post2 = 1 - (a @ back).item()
    f32 = lambda m: jnp.asarray(m, jnp.float32)  # noqa: E731
    normal = lambda mean, var: DiagonalGaussian(mean, jnp.full_like(mean, np.log(var)))  # noqa: E731

    def encode_lower(params, x, context=None):
        mean = x @ f32(gain)
        tril = f32(np.linalg.cholesky(post1) * (1 if exact else 1.2))
        return FullGaussian(mean, jnp.broadcast_to(tril, (*mean.shape, 2)))

    upper = VAE(
        lambda key, x: {},
        lambda params, z1, context=None: normal(z1 @ f32(back), post2),
        lambda params, z2, context=None: normal(z2 @ f32(a), s),
        lambda params: standard_normal(1),
    )
    lower = VAE(lambda key, x: {}, encode_lower, lambda params, z, context=None: normal(z @ f32(w), t), lambda p: None)
    return hierarchies.join_markov(lower, upper), multivariate_normal(np.zeros(3), cov_x)


def test_a_linear_gaussian_chain_has_the_density_of_its_closed_form(key):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
    for exact, num_samples, within in ((True, 1, 1e-4), (False, 20_000, 1e-2)):
        vae, p = linear_gaussian(exact)
        params = vae.init(jax.random.key(0), x)
        weights = jit(log_weights, vae, num_samples=num_samples)(params, jax.random.clone(key), x)
        np.testing.assert_allclose(importance_bound(weights), p.logpdf(np.asarray(x)), atol=within)


def test_a_chain_is_the_product_of_its_parts(key):
    first = DiagonalGaussian(jnp.array([0.3, -1.0]), jnp.array([0.2, -0.4]))
    then = lambda z: DiagonalGaussian(z["b"][..., :1] * 2, z["b"][..., 1:])  # noqa: E731
    chain = Chain(("b", "a"), first, (then,))
    z = chain.sample(key, (200_000,))
    assert {name: a.shape for name, a in z.items()} == {"b": (200_000, 2), "a": (200_000, 1)}
    np.testing.assert_allclose(z["b"].mean(0), first.mean, atol=0.02)
    np.testing.assert_allclose(np.corrcoef(z["a"][:, 0], z["b"][:, 0])[0, 1], 2.21 / (2.21**2 + 0.48) ** 0.5, atol=0.2)
    np.testing.assert_allclose(chain.log_prob(z), first.log_prob(z["b"]) + then(z).log_prob(z["a"]), rtol=1e-6)
    np.testing.assert_allclose(chain.mean["a"], 2 * first.mean[:1])


@pytest.mark.parametrize("hierarchy", mostly_slow(HIERARCHIES, lambda name: name == "hvae"))
def test_bounds_are_in_order_and_gradients_reach_every_layer(hierarchy, key):
    vae, x = build(hierarchy, activation="tanh"), data()
    params = vae.init(jax.random.key(3), x)
    params = jax.tree.map(lambda p: p + 0.3 * jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)

    @jax.jit
    def bounds(params, key):
        log_w = log_weights(params, key, x, vae, num_samples=2000)
        return [importance_bound(log_w.reshape(k, -1, len(x)).reshape(k, -1)).mean() for k in (1, 10, 100)]

    one, ten, hundred = bounds(params, jax.random.clone(key))
    assert one < ten < hundred
    terms = jit(elbo, vae, num_samples=2000, kl="monte_carlo")(params, jax.random.clone(key), x)
    np.testing.assert_allclose((terms.log_likelihood - terms.kl).mean(), one, atol=1e-3)
    losses = (
        lambda p: negative_elbo(p, jax.random.clone(key), x, vae)[0],
        lambda p: negative_iwae(p, jax.random.clone(key), x, vae, num_samples=3, estimator="dreg")[0],
    )
    for grads in jax.jit(lambda p: [jax.grad(loss)(p) for loss in losses])(params):
        assert all(np.isfinite(g).all() and np.any(g != 0) for g in jax.tree.leaves(grads))


def test_the_kl_of_two_levels_is_in_closed_form_given_the_upper_one(key):
    """It has the mean of the estimate from samples, and less variance."""
    vae, x = build("hvae", activation="tanh"), data()
    params = vae.init(jax.random.key(3), x)
    params = jax.tree.map(lambda p: p + 0.3 * jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    keys = jax.random.split(key, 4_000)
    draws = {
        kl: jax.jit(jax.vmap(lambda key, kl=kl: elbo(params, key, x, vae, kl=kl).kl))(jax.random.clone(keys))
        for kl in ("auto", "monte_carlo")
    }
    assert_within_errors(draws["auto"] - draws["monte_carlo"], 0)
    assert np.all(np.var(draws["auto"], axis=0) < 0.8 * np.var(draws["monte_carlo"], axis=0))
    with pytest.raises(ValueError, match=r"KL of Chain and Chain has no closed form here\. Set kl='auto'"):
        jax.eval_shape(lambda k: elbo(params, k, x, vae, kl="analytic"), jax.random.key(0))


@every_hierarchy
def test_generation(hierarchy, key):
    vae, x = build(hierarchy), data()
    params = vae.init(jax.random.key(0), x)

    @jax.jit
    def run(params, key):
        drawn = generate.sample(params, key, vae, 6)
        lines = generate.interpolate(params, x[:2], x[2:4], vae, 5)
        return drawn.x, generate.reconstruct(params, x, vae), lines, generate.traverse(params, x[:1], vae, 7)

    drawn, reconstructed, lines, rows = run(params, key)
    assert drawn.shape == (6, *SHAPE) and reconstructed.shape == x.shape
    assert lines.shape == (2, 5, *SHAPE) and rows.shape == (5, 7, *SHAPE)
    np.testing.assert_allclose(lines[:, 0], reconstructed[:2], atol=1e-5)


def test_the_vampprior_of_the_top_latent_needs_an_encoder_of_x():
    vae = build("hvae", prior="vamp", prior_options={"num_components": 4})
    params = vae.init(jax.random.key(0), data())
    assert params["upper"]["prior"]["pseudo_inputs"].shape == (4, *SHAPE)
    assert vae.prior(params).first.components.mean.shape == (4, 2)
    with pytest.raises(UserError, match="hvae"):
        build("markov", prior="vamp")


def moved(vae):
    params = vae.init(jax.random.key(3), data())
    return jax.tree.map(lambda p: p + 0.3 * jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)


@pytest.mark.parametrize("prior", ("standard_normal", "mixture"))
def test_a_ladder_of_one_level_is_the_vae_without_a_hierarchy_bit_for_bit(prior, key):
    settings = {"hidden_sizes": (8,), "latent_dim": 3, "batch_size": 5, "prior": prior}
    options = {"hierarchy": "ladder", "hierarchy_options": {"latent_dims": [], "hidden_sizes": []}}
    results = []
    for config in (Config(**settings), Config(**settings, **options)):
        vae = builder.make_vae(config, DATA)
        params = vae.init(jax.random.key(0), data())
        loss, grads = jax.value_and_grad(negative_elbo, has_aux=True)(params, jax.random.clone(key), data(), vae)
        results.append((params, loss, grads, generate.sample(params, jax.random.key(1), vae, 4).x))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_the_gaussian_that_levels_combine_is_the_product_of_densities():
    rng = np.random.default_rng(0)
    mean_q, mean_p, z = rng.normal(size=(3, 5, 2))
    log_var_q, log_var_p = rng.normal(size=(2, 5, 2)) * 2
    as_f32 = [jnp.asarray(a, jnp.float32) for a in (mean_q, log_var_q, mean_p, log_var_p)]
    both = combine(DiagonalGaussian(*as_f32[:2]), DiagonalGaussian(*as_f32[2:]))
    density = lambda z, mean, log_var: norm.logpdf(z, mean, np.exp(log_var / 2))  # noqa: E731
    # log q(z) + log p(z) - log N(z) of the combined Gaussian does not depend on z
    rest = [
        density(z, mean_q, log_var_q) + density(z, mean_p, log_var_p) - density(z, both.mean, both.log_var)
        for z in (z, z + 1, 2 * z)
    ]
    np.testing.assert_allclose(rest[1:], [rest[0]] * 2, atol=1e-4)
    far = combine(
        DiagonalGaussian(jnp.ones(1), jnp.full(1, 200.0)), DiagonalGaussian(jnp.zeros(1), jnp.full(1, -200.0))
    )
    assert (far.mean, far.log_var) == (0, -200)


@pytest.mark.parametrize("skip", (False, True))
def test_a_ladder_of_two_levels_against_quadrature(skip, key):
    """The densities, log p(x), the ELBO and the KL of each level, of six binary pixels and levels of one dimension."""
    x = jnp.array([[1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1]], jnp.float32)
    config = Config(
        latent_dim=1,
        hidden_sizes=(8,),
        activation="tanh",
        batch_size=1,
        hierarchy="ladder",
        hierarchy_options={"latent_dims": [1], "hidden_sizes": [6], "skip": skip},
    )
    vae = builder.make_vae(config, DataInfo((6,), (), (0.0, 1.0), len(x), 0, 0, "", None))
    rng = np.random.default_rng(0)
    move = lambda a: 0.7 * a + 0.2 * rng.normal(size=a.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(move, vae.init(jax.random.key(0), x))
    axis = np.linspace(-10, 10, 201)
    z1, z2 = (np.repeat(a.reshape(-1, 1, 1), 2, 1).astype(np.float32) for a in np.meshgrid(axis, axis))
    grid, cell = {"z1": z1, "z2": z2}, (axis[1] - axis[0]) ** 2

    @jax.jit
    def on_grid(params, grid):
        q, p = vae.encode(params, x), vae.prior(params)
        each = jax.vmap(lambda z: (q.log_prob(z), p.log_prob(z), vae.decode(params, z).mean))(grid)
        return *each, [
            (q_z.log_prob(z), p_z.log_prob(z))
            for z, q_z, p_z in zip((grid["z2"], grid["z1"]), q.given(grid), p.given(grid), strict=True)
        ]

    log_q, log_p, mean, levels = jax.tree.map(lambda a: np.asarray(a, np.float64), on_grid(params, grid))
    log_px = np.log(np.where(x == 1, mean, 1 - mean)).sum(-1)
    for density in (log_q, log_p):
        np.testing.assert_allclose(np.exp(density).sum(0) * cell, 1, rtol=1e-5)
    weights = jit(log_weights, vae, num_samples=50_000)(params, jax.random.clone(key), x)
    np.testing.assert_allclose(importance_bound(weights), np.log((np.exp(log_p + log_px)).sum(0) * cell), atol=0.02)

    terms = jit(elbo, vae, num_samples=50_000)(params, jax.random.clone(key), x)
    of_q = lambda values: (np.exp(log_q) * values).sum(0) * cell  # noqa: E731
    np.testing.assert_allclose(terms.kl, of_q(log_q - log_p), atol=0.01)
    np.testing.assert_allclose(terms.log_likelihood, of_q(log_px), atol=0.02)
    _, metrics = jit(negative_elbo, vae, num_samples=50_000)(params, jax.random.clone(key), x)
    for name, (q_level, p_level) in zip(("z2", "z1"), levels, strict=True):
        np.testing.assert_allclose(metrics[f"kl_{name}"], of_q(q_level - p_level).mean(), atol=0.01)


def test_the_kl_of_every_level_is_told_and_counts_free_bits(key):
    vae, x = build("ladder", activation="tanh"), data()
    params = moved(vae)
    _, plain = negative_elbo(params, jax.random.clone(key), x, vae)
    parts = np.array([plain["kl_z1"], plain["kl_z2"]])
    np.testing.assert_allclose(parts.sum(), plain["kl"], rtol=1e-6)
    free = float(parts.mean())
    loss, same = negative_elbo(params, jax.random.clone(key), x, vae, free_bits=free)
    np.testing.assert_allclose(loss, np.maximum(parts, free).sum() - plain["log_likelihood"], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, plain, same)
    with pytest.raises(ValueError, match="two DiagonalGaussian; got Chain"):
        negative_elbo(moved(build("markov")), jax.random.clone(key), x, build("markov"), free_bits=free)

    config = Config(free_bits=free, hierarchy="ladder")
    evaluate = make_evaluate_objective(vae, make_evaluation_objective(config))
    values, _ = evaluate(params, jax.random.clone(key), Examples(x, None))
    each = values["kl_terms"].mean(0)
    expected = np.maximum(each, free).sum() - values["log_likelihood"].mean()
    assert split_loss(config, values)["loss"] == pytest.approx(expected, rel=1e-6)

    result = make_evaluate(vae, num_samples=50)(params, jax.random.clone(key), Examples(x, None))
    assert set(result.kl_by_level) == {"z1", "z2"}
    np.testing.assert_allclose(sum(result.kl_by_level.values()), result.kl, rtol=1e-5)
    assert set(summarize(result, 50)["kl_by_level"]) == {"z1", "z2"}


@pytest.mark.robust
@pytest.mark.parametrize("skip", (False, True))
def test_a_ladder_of_five_levels_has_five_latents(skip):
    options = {"latent_dims": (5, 4, 3, 2), "hidden_sizes": (9, 8, 7, 6), "skip": skip}
    vae = builder.make_vae(
        Config(batch_size=5, latent_dim=6, hidden_sizes=(8,), hierarchy="ladder", hierarchy_options=options), DATA
    )
    params = moved(vae)
    z = vae.encode(params, data()).sample(jax.random.key(1), (3,))
    assert {name: a.shape[-1] for name, a in z.items()} == {"z1": 6, "z2": 5, "z3": 4, "z4": 3, "z5": 2}
    grads = jax.jit(jax.grad(lambda p: negative_elbo(p, jax.random.key(2), data(), vae)[0]))(params)
    assert all(np.isfinite(g).all() and np.any(g != 0) for g in jax.tree.leaves(grads))


def test_the_layers_of_a_ladder_have_default_sizes():
    options = {"latent_dims": (3, 2)}
    vae = builder.make_vae(
        Config(batch_size=5, latent_dim=4, hidden_sizes=(8,), hierarchy="ladder", hierarchy_options=options), DATA
    )
    params = jax.eval_shape(vae.init, jax.random.key(0), data())
    assert [params[level]["decoder"]["Dense_0"]["bias"].shape for level in ("z2", "z3")] == [(256,), (128,)]


def test_a_ladder_refuses_what_it_cannot_combine():
    with pytest.raises(UserError, match=r"posterior is 'flow'\. Set --config\.posterior=diagonal"):
        build("ladder", posterior="flow")
    with pytest.raises(UserError, match=r"hidden_sizes is \(6, 5\); expected one number for each of the latent_dims"):
        builder.make_vae(
            Config(
                batch_size=5,
                hierarchy="ladder",
                hierarchy_options={"latent_dims": [2], "hidden_sizes": [6, 5]},
            ),
            DATA,
        )


def test_bad_options_are_named():
    with pytest.raises(UserError, match=r"Unknown hierarchy 'markof'\. Did you mean 'markov'"):
        build("markof")
    with pytest.raises(UserError, match=r"without a --config\.hierarchy"):
        build("")
