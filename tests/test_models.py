"""Every network, likelihood and posterior fit together; what does not fit is one line of error."""

from dataclasses import replace
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mostly_slow
from helpers import CODED, jit, members

from vae_jax import build, likelihoods, networks, posteriors, priors
from vae_jax.config import Config
from vae_jax.data.inputs import DataInfo
from vae_jax.errors import UserError
from vae_jax.objectives import negative_elbo

LATENTS, BATCH = 3, 5
NETWORKS = {
    "mlp": {"hidden_sizes": (8, 6)},
    "convolutional": {"hidden_sizes": (8,), "network_options": {"channels": [4, 6]}},
    "temporal": {"hidden_sizes": (8,), "network_options": {"channels": [4, 6]}},
}
SHAPES = {
    "mlp": ((8, 8, 1), (5,)),
    "convolutional": ((8, 8, 1), (7, 5, 3)),
    "temporal": ((7,), (1,), (5, 3), (8, 8, 1)),
}
LIKELIHOODS = sorted(members(likelihoods, "Likelihood") - {"mixed"})  # which is of tables: see test_mixed.py
POSTERIORS = sorted(members(posteriors, "Posterior"))
PRIORS = sorted(members(priors, "Prior"))
CASES = [(network, shape) for network in NETWORKS for shape in SHAPES[network]]

every_network = pytest.mark.parametrize("network, shape", CASES, ids=str)


def info(shape=(8, 8, 1), **changes):
    return DataInfo(shape, (0, 1, 2, 3), (0.1, 0.9), 100, 0, 10, "0123456789abcdef", None)._replace(**changes)


def config(network="mlp", **settings):
    return Config(network=network, latent_dim=LATENTS, batch_size=BATCH, **(NETWORKS[network] | settings))


_CHANNELS = {"channels": [4, 6]}
CONVOLUTIONAL = {
    name: config("convolutional", network_options=_CHANNELS | options)
    for name, options in {
        "mirrored": {},
        "sub-pixel": {"decoder_channels": [5]},
        "residual": {"encoder_blocks": [2, 1], "decoder_blocks": [1, 2]},
    }.items()
}


def data(shape, num=40):
    return jax.random.uniform(jax.random.key(1), (num, *shape), minval=0.1, maxval=0.9)


def start(vae, shape, seed=0):
    return vae.init(jax.random.key(seed), data(shape))


def parameter_count(vae, shape):
    params = jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros((2, *shape)))
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_every_network_of_the_module_is_tested_here():
    assert members(networks, "Network") == set(NETWORKS)


@every_network
@pytest.mark.parametrize(
    "likelihood, posterior", [*product(LIKELIHOODS, ["diagonal"]), *product(["bernoulli"], POSTERIORS)], ids=str
)
def test_every_combination_has_its_shapes(network, shape, likelihood, posterior):
    """No posterior meets a likelihood but through z, so each with every network is enough."""
    fields = {"posterior": posterior, **CODED.get(posterior, {})}
    vae = build.make_vae(config(network, likelihood=likelihood, **fields), info(shape))

    def pass_through(key, x):
        params = vae.init(key, x)
        q = vae.encode(params, x)
        z = q.sample(jax.random.key(1), (2,))
        return q.mean, z, vae.decode(params, z).mean, vae.prior(params).log_prob(z)

    mean, z, x, log_prior = jax.eval_shape(pass_through, jax.random.key(0), jnp.zeros((BATCH, *shape)))
    assert mean.shape == (BATCH, LATENTS) and z.shape == (2, BATCH, LATENTS)
    assert x.shape == (2, BATCH, *shape) and log_prior.shape == (2, BATCH)


@pytest.mark.parametrize(
    "case, shape",
    mostly_slow(
        (("mlp", (5,)), ("temporal", (9, 3)), *((case, (7, 5, 3)) for case in CONVOLUTIONAL)),
        lambda case: case[0] in ("mlp", "temporal", "sub-pixel"),
    ),
)
def test_gradients_are_finite_and_reach_every_layer(case, shape, key):
    own = CONVOLUTIONAL.get(case) or config(case)
    vae = build.make_vae(replace(own, activation="tanh", likelihood="gaussian_pixel"), info(shape))
    loss = lambda params, key, x: negative_elbo(params, key, x, vae)[0]  # noqa: E731
    grads = jax.jit(jax.grad(loss))(start(vae, shape), key, data(shape, BATCH))
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


def test_the_parameters_of_a_likelihood_are_learned(key):
    vae = build.make_vae(config(likelihood="gaussian_scalar"), info((5,)))
    loss = lambda params, key, x: negative_elbo(params, key, x, vae)[0]  # noqa: E731
    grads = jax.jit(jax.grad(loss))(start(vae, (5,)), key, data((5,), BATCH))
    assert grads["likelihood"]["log_var"] != 0


def test_one_sigma_begins_at_the_spread_of_the_stored_bytes():
    x = np.random.default_rng(0).integers(0, 256, (40, 5)).astype(np.uint8)
    vae = build.make_vae(config(likelihood="gaussian_scalar"), info((5,)))
    p = vae.decode(vae.init(jax.random.key(0), jnp.asarray(x)), jnp.zeros((1, LATENTS)))
    np.testing.assert_allclose(np.exp(p.log_var), np.mean(np.var(x / 255, 0)), rtol=1e-4)


def test_the_decoder_of_convolutions_mirrors_the_encoder_unless_given():
    mirrored = config("convolutional", network_options={"channels": [4, 6], "decoder_channels": [4, 6, 4]})
    one, other = (build.make_vae(c, info((7, 5, 3))) for c in (config("convolutional"), mirrored))
    jax.tree.map(np.testing.assert_array_equal, start(one, (7, 5, 3)), start(other, (7, 5, 3)))


def test_blocks_are_counted_from_the_smallest_image_on():
    options = {"channels": [4, 6], "encoder_blocks": [2], "decoder_blocks": [1, 3]}
    params = start(build.make_vae(config("convolutional", network_options=options), info((7, 5, 3))), (7, 5, 3))
    blocks = lambda part: {n: [p["kernel"].shape for p in b.values()] for n, b in part.items() if "Res" in n}  # noqa: E731
    assert blocks(params["encoder"]) == {"_Residual_1": [(3, 3, 6, 6)] * 2}
    assert blocks(params["decoder"]) == {"_Residual_0": [(3, 3, 4, 4)], "_Residual_1": [(3, 3, 6, 6)] * 3}


def test_a_network_over_time_is_that_of_flax_with_steps_in_their_order():
    """[T] and [T, F, 1] have the weights and outputs of [T, F], and the encoder is nn.Conv with 'SAME' padding."""
    from flax import linen as nn

    make = lambda shape: networks.temporal(shape, 4, 2, channels=(4, 6), activation="tanh")  # noqa: E731
    network, x = make((9, 3)), data((9, 3), BATCH)
    params = network.encoder.init(jax.random.key(0), x, None)
    h = x
    for size, name in ((4, "_Kernel_0"), (6, "_Kernel_1")):
        weights = params[name]
        assert weights["kernel"].shape == (5, 1, h.shape[-1], size)
        kernel = {"kernel": weights["kernel"][:, 0], "bias": weights["bias"] + 0.1}
        params[name] = weights | {"bias": weights["bias"] + 0.1}
        h = jnp.tanh(nn.Conv(size, (5,), 2, "SAME").apply({"params": kernel}, h))
    expected = h.reshape(BATCH, -1) @ params["dense"]["output"]["kernel"]
    np.testing.assert_allclose(network.encoder.apply(params, x, None), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        make((9, 3, 1)).encoder.apply(params, x[..., None], None), network.encoder.apply(params, x, None)
    )
    z = jnp.ones((BATCH, LATENTS))
    decoded = {}
    for shape in ((9, 1), (9, 1, 1), (9,)):
        decoder = make(shape).decoder
        decoded[shape] = decoder.apply(decoder.init(jax.random.key(0), z, None), z, None)
        assert decoded[shape].shape == (BATCH, *shape, 2)
    for y in decoded.values():
        np.testing.assert_array_equal(y.reshape(BATCH, 9, 2), decoded[(9,)])


@pytest.mark.parametrize("zoom, num_channels", ((1, 2), (2, 1), (2, 3), (4, 2)))
def test_depth_to_space_puts_every_number_in_its_place(zoom, num_channels):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, zoom * zoom * num_channels))
    expected = np.empty((2, 3 * zoom, 5 * zoom, num_channels))
    for b, i, j, c in np.ndindex(expected.shape):
        expected[b, i, j, c] = x[b, i // zoom, j // zoom, (i % zoom * zoom + j % zoom) * num_channels + c]
    np.testing.assert_array_equal(networks._depth_to_space(x, zoom), expected)


# the output bias


@pytest.mark.parametrize(
    "case, likelihood",
    [*(("mlp", name) for name in LIKELIHOODS), *((case, "gaussian_pixel") for case in CONVOLUTIONAL)],
)
def test_the_decoder_starts_at_the_mean_of_the_data(case, likelihood):
    """Of every element, or where a convolution shares its bias, of every channel."""
    shape = (7, 5, 3)
    own = CONVOLUTIONAL.get(case) or config(case)
    vae = build.make_vae(replace(own, likelihood=likelihood), info(shape))
    expected = getattr(likelihoods, likelihood)(shape)
    average = expected.average(data(shape))
    if case != "mlp":
        average = jnp.broadcast_to(jnp.mean(average, (0, 1), keepdims=True), average.shape)
    at_zero = vae.decode(start(vae, shape), jnp.zeros((1, LATENTS))).mean[0]
    np.testing.assert_allclose(
        at_zero, expected.build(expected.init(data(shape)), expected.output_bias(average)).mean, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("likelihood", ("gaussian_pixel", "categorical"))
@pytest.mark.parametrize("shape", ((7,), (6, 3), (7, 3, 1), (1,)))
def test_a_decoder_over_time_starts_at_the_average_over_time(shape, likelihood):
    vae = build.make_vae(config("temporal", likelihood=likelihood), info(shape))
    part, x = getattr(likelihoods, likelihood)(shape), data(shape)
    average = part.average(x)
    average = jnp.broadcast_to(jnp.mean(average, 0, keepdims=True), average.shape)
    at_zero = vae.decode(start(vae, shape), jnp.zeros((1, LATENTS))).mean[0]
    expected = part.build(part.init(x), part.output_bias(average)).mean
    np.testing.assert_allclose(at_zero, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", (jnp.uint8, jnp.float32))
def test_the_mean_is_that_of_the_stored_bytes_as_floats(dtype):
    x = np.arange(40, dtype=np.uint8).reshape(8, 5) * 6
    stored = jnp.asarray(x) if dtype == jnp.uint8 else jnp.asarray(x / 255, jnp.float32)
    vae = build.make_vae(config(), info((5,)))
    params = vae.init(jax.random.key(0), stored)
    np.testing.assert_allclose(vae.decode(params, jnp.zeros(LATENTS)).mean, x.mean(0) / 255, rtol=1e-4)


def test_without_an_output_bias_the_decoder_starts_at_zero():
    vae = build.make_vae(config(output_bias=False), info((5,)))
    np.testing.assert_array_equal(vae.decode(start(vae, (5,)), jnp.zeros(LATENTS)).logits, np.zeros(5))


@pytest.mark.parametrize("likelihood", ("bernoulli", "categorical"))
def test_the_start_is_nearer_the_data_with_the_bias(likelihood, key):
    losses = []
    for output_bias in (True, False):
        vae = build.make_vae(config(output_bias=output_bias, likelihood=likelihood), info((8, 8, 1)))
        x = data((8, 8, 1)) * jnp.linspace(0, 1, 8).reshape(1, 8, 1, 1)
        losses.append(jit(negative_elbo, vae)(vae.init(jax.random.key(0), x), jax.random.clone(key), x)[0])
    assert losses[0] < losses[1]


# labels


@pytest.mark.parametrize("network", NETWORKS)
def test_a_label_changes_both_distributions(network):
    shape = (8, 8, 1)
    vae = build.make_vae(config(network, conditional=True), info(shape))
    params, x, z = start(vae, shape), data(shape, BATCH), jnp.ones((2, BATCH, LATENTS))
    both = jax.jit(lambda context: (vae.encode(params, x, context).mean, vae.decode(params, z, context).mean))
    one, two = (both(jnp.broadcast_to(label, (BATCH, 4))) for label in jnp.eye(4)[:2])
    assert [a.shape for a in one] == [(BATCH, LATENTS), (2, BATCH, *shape)]
    assert all(np.mean(a != b) > 0.5 for a, b in zip(one, two, strict=True))


# sizes and starts


def test_the_parameters_of_a_784_256_64_32_network_are_440_thousand():
    settings = Config(hidden_sizes=(256, 64, 32), activation="elu", latent_dim=2)
    widths = [(784, 256), (256, 64), (64, 32), (32, 4), (2, 32), (32, 64), (64, 256), (256, 784)]
    expected = sum(i * o + o for i, o in widths)
    vae = build.make_vae(settings, info((28, 28, 1), num_train=1000))
    assert parameter_count(vae, (28, 28, 1)) == expected == 439_956


def test_no_hidden_layers_is_a_linear_model():
    vae = build.make_vae(config(hidden_sizes=()), info((5,)))
    assert parameter_count(vae, (5,)) == 5 * 2 * LATENTS + 2 * LATENTS + LATENTS * 5 + 5


@pytest.mark.parametrize("network", NETWORKS)
def test_the_start_is_a_function_of_the_key(network):
    vae = build.make_vae(config(network), info((8, 8, 1)))
    one, again, other = (jax.tree.leaves(start(vae, (8, 8, 1), seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_activations_may_differ_from_layer_to_layer():
    means = set()
    for activation, options in (("relu", {}), ("relu,tanh", {}), ("relu", {"decoder_activation": "tanh,elu"})):
        vae = build.make_vae(config(activation=activation, network_options=options), info((5,)))
        params = start(vae, (5,))
        means.add(float(vae.decode(params, vae.encode(params, data((5,))).mean).mean.sum()))
    assert len(means) == 3


def test_gated_layers_have_half_the_outputs():
    vae = build.make_vae(config(activation="glu", hidden_sizes=(8, 6)), info((5,)))
    params, x = start(vae, (5,)), data((5,))
    h, layers = np.asarray(x, np.float64), jax.tree.map(np.asarray, params["encoder"])
    for name in ("Dense_0", "Dense_1"):
        value, gate = np.split(h @ layers[name]["kernel"] + layers[name]["bias"], 2, -1)
        h = value / (1 + np.exp(-gate))
    outputs = h @ layers["output"]["kernel"] + layers["output"]["bias"]
    np.testing.assert_allclose(vae.encode(params, x).mean, outputs[:, :LATENTS], rtol=1e-5, atol=1e-6)


# what does not fit


@pytest.mark.parametrize(
    "settings, changes, words",
    (
        ({"network": "mpl"}, {}, ("Unknown network 'mpl'", "Did you mean 'mlp'", "convolutional, mlp")),
        ({"network": "Network"}, {}, ("Unknown network 'Network'",)),
        ({"network": "_network"}, {}, ("Unknown network '_network'",)),
        ({"likelihood": "bernouli"}, {}, ("Unknown likelihood 'bernouli'", "bernoulli", ", ".join(likelihoods.NAMES))),
        ({"posterior": "gaussian"}, {}, ("Unknown posterior 'gaussian'", ", ".join(POSTERIORS))),
        ({"prior": "normal"}, {}, ("Unknown prior 'normal'", ", ".join(PRIORS))),
        ({"network_options": {"width": 3}}, {}, ("network 'mlp' has no option 'width'", "decoder_activation")),
        ({"likelihood_options": {"sigma": 1.0}}, {}, ("likelihood 'bernoulli' has no option 'sigma'", "none")),
        ({"posterior_options": {"rank": 1}}, {}, ("posterior 'diagonal' has no option 'rank'", "none")),
        ({"prior_options": {"k": 1}}, {}, ("prior 'standard_normal' has no option 'k'", "none")),
        ({"likelihood": "gaussian", "likelihood_options": {"sigma": 0.0}}, {}, ("sigma is 0.0", "positive")),
        ({"likelihood": "gaussian", "likelihood_options": {"sigma": "one"}}, {}, ("likelihood 'gaussian'",)),
        ({"activation": "rellu"}, {}, ("Unknown activation 'rellu'", "relu")),
        ({"activation": "relu,tanh,relu"}, {}, ("names 3 layers", "one name or 1")),
        ({"activation": "glu", "hidden_sizes": (5,)}, {}, ("makes no model", "divisible by 2")),
        ({"network": "convolutional"}, {"shape": (5,)}, ("(5,)", "[H, W, C]")),
        ({"network": "temporal"}, {"shape": (8, 8, 3)}, ("(8, 8, 3)", "[T], [T, F] or [T, F, 1]")),
        ({"network": "temporal", "network_options": {"channels": []}}, {}, ("channels is []",)),
        (
            {"network": "convolutional", "network_options": {"decoder_channels": [8, 8, 8, 8]}},
            {},
            ("decoder_channels is (8, 8, 8, 8)", "at most 3 for channels (32, 64)"),
        ),
        (
            {"network": "convolutional", "network_options": {"encoder_blocks": [1, 1, 1]}},
            {},
            ("(1, 1, 1) are blocks for 3 images", "at most 2"),
        ),
        (
            {"network": "convolutional", "network_options": {"decoder_blocks": [1, 10**6]}},
            {},
            ("1000001 residual blocks", "at most 100"),
        ),
        ({"conditional": True}, {"classes": ()}, ("conditional", "no labels")),
        ({"batch_size": 101}, {}, ("batch_size is 101", "at most the 100")),
        ({}, {"range": (-1.0, 1.0)}, ("likelihood 'bernoulli' needs data in [0, 1]", "[-1, 1]", "gaussian")),
        ({"likelihood": "log_normal"}, {"range": (0.0, 9.0)}, ("'log_normal' needs data in (0, inf); the", "[0, 9]")),
        ({"binarization": "dynamic"}, {"range": (0.0, 9.0)}, ("binarization 'dynamic' needs data in [0, 1]", "[0, 9]")),
        (
            {"likelihood": "gaussian", "binarization": "static"},
            {"range": (0.0, 9.0)},
            ("binarization 'static' needs data in [0, 1]",),
        ),
    ),
    ids=str,
)
def test_what_does_not_fit_is_one_line_of_error(settings, changes, words):
    with pytest.raises(UserError) as caught:
        build.make_vae(Config(**({"batch_size": 10} | settings)), info(**changes))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("likelihood", ("gaussian", "gaussian_pixel", "gaussian_scalar", "laplace", "student_t"))
def test_real_numbers_may_have_any_range(likelihood):
    build.make_vae(config(likelihood=likelihood), info((5,), range=(-7.0, 300.0)))
