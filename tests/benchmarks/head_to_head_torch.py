"""The contenders of head_to_head.py in PyTorch and in pythae, and the conversion of weights between them and vae_jax.

The model is that of vae_jax: an MLP, a diagonal Gaussian q(z | x), Bernoulli pixels, and the prior N(0, I) or RealNVP.
All contenders begin with the weights of vae_jax, and give back their weights in its form.
"""

import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from head_to_head_jax import Setting, Trained
from measure import fastest, num_cores
from pytorch import pythae_vae
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {"relu": nn.ReLU, "gelu": lambda: nn.GELU(approximate="tanh")}  # JAX's GELU is the approximate one
MAX_LOG_SCALE = 2.0
TRIAL_STEPS = 30  # of each variant of the loop, from which the fastest is chosen


class Model(nn.Module):
    """q(z | x), p(x | z) and p(z) for x [B, 784] and z [B, L]."""

    def __init__(self, setting: Setting, num_pixels: int = 784):
        super().__init__()
        sizes, dim, make = setting.hidden_sizes, setting.latent_dim, ACTIVATIONS[setting.activation]
        half = dim // 2
        self.kept = [half if i % 2 == 0 else dim - half for i in range(setting.num_couplings)]
        self.encoder = dense((num_pixels, *sizes, 2 * dim), make)
        self.decoder = dense((dim, *reversed(sizes), num_pixels), make)
        hidden = (setting.hidden_size,) * 2
        self.couplings = nn.ModuleList(dense((n, *hidden, 2 * (dim - n)), ACTIVATIONS["gelu"]) for n in self.kept)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.encoder(x).to(x.dtype).chunk(2, -1)
        return mean, log_var

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), [B]: the inverse of the couplings, then N(0, I)."""
        log_det = torch.zeros_like(z[:, 0])
        for kept, layer in reversed(list(zip(self.kept, self.couplings, strict=True))):
            b, a = z[:, : z.shape[1] - kept], z[:, z.shape[1] - kept :]
            shift, log_scale = layer(a).chunk(2, -1)
            log_scale = MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)
            z = torch.cat([a, (b - shift) * torch.exp(-log_scale)], -1)
            log_det = log_det - log_scale.sum(-1)
        return gaussian_log_prob(z, torch.zeros_like(z), torch.zeros_like(z)) + log_det


def dense(sizes: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), activation())]
    return nn.Sequential(*layers[:-1])


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * ((z - mean) ** 2 * torch.exp(-log_var) + log_var + math.log(2 * math.pi)).sum(-1)


def log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x | z), [B]."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def negative_elbo(model: Model, grey: Tensor, u: Tensor, eps: Tensor, stl: bool, autocast: bool) -> Tensor:
    """Minus the ELBO per example, [], of grey [B, 784], binarised by u [B, 784], with one sample by eps [B, L]."""
    x = (u < grey).to(grey.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mean, log_var = model.encode(x)
        z = mean + torch.exp(0.5 * log_var) * eps
        logits = model.decoder(z).to(x.dtype)
    if stl:
        kl = gaussian_log_prob(z, mean.detach(), log_var.detach()) - model.log_prior(z)
    else:
        kl = -0.5 * (1 + log_var - mean**2 - torch.exp(log_var)).sum(-1)
    return (kl - log_likelihood(logits, x)).mean()


def load(model: Model, params: Any) -> Model:
    """The model with the weights `params` of vae_jax. Raises ValueError if one of them has no place in the model."""
    with torch.no_grad():
        for network, own in parts(model, params):
            for layer, weights in zip(linear_layers(network), layers_of(own), strict=True):
                kernel, bias = (torch.from_numpy(np.array(weights[name])) for name in ("kernel", "bias"))
                if kernel.T.shape != layer.weight.shape:
                    raise ValueError(f"a layer is {list(kernel.T.shape)}; expected {list(layer.weight.shape)}.")
                layer.weight.copy_(kernel.T)
                layer.bias.copy_(bias)
    return model


def parts(model: Model, params: Any) -> list[tuple[nn.Sequential, Any]]:
    networks = [model.encoder, model.decoder, *model.couplings]
    return list(zip(networks, [params["encoder"], params["decoder"], *params["prior"]], strict=True))


def layers_of(params: Any) -> list[Any]:
    """The layers of an MLP of vae_jax in their order."""
    return [*(params[f"Dense_{i}"] for i in range(len(params) - 1)), params["output"]]


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


def to_params(model: Model) -> Any:
    """A copy of the weights of the model in the form of vae_jax."""

    def mlp(network: nn.Module) -> dict[str, Any]:
        weights = [
            {"kernel": layer.weight.detach().numpy().T.copy(), "bias": layer.bias.detach().numpy().copy()}
            for layer in linear_layers(network)
        ]
        return {**{f"Dense_{i}": own for i, own in enumerate(weights[:-1])}, "output": weights[-1]}

    prior = [mlp(network) for network in model.couplings] or {}
    networks = {"encoder": mlp(model.encoder), "decoder": mlp(model.decoder), "prior": prior}
    return {**networks, "posterior": {}, "likelihood": {}}


class Loop:
    """The training loop of PyTorch: floats in memory, fused Adam, averaged weights. x: the grey images, [N, 784]."""

    def __init__(self, setting: Setting, x: Tensor, params: Any, variant: str):
        self.setting, self.x, self.params = setting, x, params
        self.precision = "medium" if "oneDNN" in variant else "highest"
        self.model, self.average = (load(Model(setting, x.shape[1]), params) for _ in range(2))
        self.weights, self.averages = ([*model.parameters()] for model in (self.model, self.average))
        self.optimizer = torch.optim.Adam(self.weights, lr=setting.learning_rate, fused=True)
        self.steps_per_epoch = len(x) // setting.batch_size
        self.step_number = 0
        # Drawn by the compiled code itself, or by PyTorch before it.
        self.loss = self.drawn if "not compiled" in variant else torch.compile(self.drawn, dynamic=False)
        self.negative_elbo = partial(negative_elbo, self.model, stl=setting.stl, autocast="autocast" in variant)
        if "draws before" in variant:
            self.negative_elbo, self.loss = torch.compile(self.negative_elbo, dynamic=False), self.drawn

    def drawn(self, rows: Tensor) -> Tensor:
        """Minus the ELBO of the images `rows`, with new draws of the pixels and of z."""
        u, eps = torch.rand(len(rows), self.x.shape[1]), torch.randn(len(rows), self.setting.latent_dim)
        return self.negative_elbo(self.x[rows], u, eps)

    def begin(self) -> None:
        """Back to the first weights and state of the optimiser, in place, so that nothing is compiled anew."""
        load(self.model, self.params), load(self.average, self.params)
        self.step_number = 0
        for moments in self.optimizer.state.values():
            for moment in moments.values():
                moment.zero_()

    def train(self, num_steps: int) -> float:
        """The mean loss of so many steps of a new pass over the images."""
        torch.set_float32_matmul_precision(self.precision)
        order, size = torch.randperm(len(self.x)), self.setting.batch_size
        return sum_of(self.step(order[i * size : (i + 1) * size]) for i in range(num_steps)) / num_steps

    def step(self, rows: Tensor) -> Tensor:
        setting, step = self.setting, self.step_number
        if setting.schedule == "cosine":
            share = step / (setting.num_epochs * self.steps_per_epoch)
            self.optimizer.param_groups[0]["lr"] = setting.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        self.optimizer.zero_grad()
        value = self.loss(rows)
        value.backward()
        self.optimizer.step()
        if setting.ema_decay:
            decay = min(setting.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.weights, 1 - decay)
        self.step_number += 1
        return value.detach()

    @property
    def averaged(self) -> Model:
        return self.average if self.setting.ema_decay else self.model


def sum_of(values: Iterable[Tensor]) -> float:
    total = torch.zeros(())
    for value in values:
        total += value
    return float(total)


def pytorch(setting: Setting, grey: np.ndarray, params: Any) -> Trained:
    """The fastest of PyTorch's loops that the setting allows. grey: [N, D], in [0, 1]. params: those to begin with."""
    torch.set_num_threads(num_cores())
    torch.manual_seed(setting.seed)
    x = torch.from_numpy(grey)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # so that nothing was compiled before
        loop, compile_seconds, choice = fastest_loop(setting, x, params)
        seconds, losses, kept = [0.0], [], []
        for _ in range(setting.num_epochs):
            start = time.perf_counter()
            losses.append(loop.train(loop.steps_per_epoch))
            seconds.append(seconds[-1] + time.perf_counter() - start)
            kept.append(to_params(loop.averaged))
    return Trained(seconds[1:], losses, kept, compile_seconds, choice)


def fastest_loop(setting: Setting, x: Tensor, params: Any) -> tuple[Loop, float, str]:
    """The fastest loop, at its first step again, the seconds of its first step ever, which compiles, and its name."""
    loops, compiling, failed = {}, {}, ""
    for name in variants(setting.compute_dtype):
        loop, start = Loop(setting, x, params, name), time.perf_counter()
        try:
            loop.train(1)
        except RuntimeError as error:  # such as no C++ compiler
            failed = f"; torch.compile failed: {type(error).__name__}"
            continue
        loops[name], compiling[name] = loop, time.perf_counter() - start
    num_trials = min(TRIAL_STEPS, len(x) // setting.batch_size)
    choice, _ = fastest({name: rate(loop, num_trials) for name, loop in loops.items()})
    loops[choice].begin()
    return loops[choice], compiling[choice], choice + failed


def variants(compute_dtype: str) -> list[str]:
    """The names of the loops, of which the fastest is taken; those of bfloat16 only where vae_jax uses it too.

    oneDNN rounds the factors of float32 products, as vae_jax does. Autocast rounds their results too.
    """
    types = ["float32", *(["bfloat16 by autocast", "bfloat16 by oneDNN"] if compute_dtype == "bfloat16" else [])]
    return [f"{name}, {how}" for name in types for how in ("compiled", "compiled, draws before it", "not compiled")]


def rate(loop: Loop, num_steps: int) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        loop.train(num_steps)
        return num_steps / (time.perf_counter() - start)

    return run


def pythae(setting: Setting, grey: np.ndarray, params: Any) -> Trained:
    """pythae's VAE by its own trainer as it comes, on this network. Its images are binarised by its Dataset.

    The last batch of an epoch is whole or not: pythae leaves no image out. An epoch ends with its copy of the weights.
    """
    from pythae.data.datasets import BaseDataset, DatasetOutput
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Binarised(BaseDataset):
        def __getitem__(self, index: int) -> DatasetOutput:
            return DatasetOutput(data=torch.bernoulli(self.data[index]), labels=self.labels[index])

    class Clock(TrainingCallback):
        def __init__(self):
            self.start, self.losses, self.ends, self.kept = 0.0, [], [0.0], []

        def on_epoch_begin(self, training_config: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, training_config: Any, **kwargs: Any) -> None:
            self.ends.append(self.ends[-1] + time.perf_counter() - self.start)
            self.kept.append(to_params(network))

        def on_log(self, training_config: Any, logs: dict[str, float], **kwargs: Any) -> None:
            self.losses.append(float(logs["train_epoch_loss"]))

    torch.set_num_threads(num_cores())
    logging.disable(logging.INFO)
    network = load(Model(setting, grey.shape[1]), params)
    side = math.isqrt(grey.shape[1])
    model = pythae_vae(network, network.decoder, setting.latent_dim, side)
    x, clock = torch.from_numpy(grey).view(-1, 1, side, side), Clock()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as log, contextlib.redirect_stderr(log):
        options = BaseTrainerConfig(
            output_dir=folder,
            learning_rate=setting.learning_rate,
            per_device_train_batch_size=setting.batch_size,
            num_epochs=setting.num_epochs,
            seed=setting.seed,
        )
        trainer = BaseTrainer(model, Binarised(x, torch.zeros(len(x))), training_config=options, callbacks=[clock])
        trainer.train()
    return Trained(clock.ends[1:], clock.losses, clock.kept, 0.0, "its own trainer")
