"""Contenders of PyTorch and pythae: the same networks on the same images, each with a loop of its own.

Each function prepares one and gives a `measure.Prepared` whose run gives images a second. On a GPU where there is one.
"""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import torch
from measure import Prepared, fastest, images, num_cores
from torch import Tensor, nn
from torch.nn import functional as F

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class MLP(nn.Module):
    """784-400-20, ReLU."""

    def __init__(self):
        super().__init__()
        self.hidden, self.mean, self.log_var = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.hidden(x.flatten(1)))
        return self.mean(h), self.log_var(h)


class Convolutional(nn.Module):
    """Convolutions of stride 2 to 32 and 64 channels, z = 64, and their mirror."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * 7 * 7, 2 * 64)),
        )
        self.decoder = nn.Sequential(
            *(nn.Linear(64, 32 * 7 * 7), nn.ReLU(), nn.Unflatten(1, (32, 7, 7))),
            *(nn.ConvTranspose2d(32, 64, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), nn.ReLU()),
            nn.ConvTranspose2d(32, 1, 3, 1, 1),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        return mean, log_var


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """Minus the ELBO of the batch x: [B, 1, 28, 28], summed over it."""
    mean, log_var = model.encode(x)
    logits = model.decoder(mean + torch.randn_like(mean) * torch.exp(0.5 * log_var))
    cross_entropy = F.binary_cross_entropy_with_logits(logits.flatten(1).float(), x.flatten(1), reduction="sum")
    return cross_entropy - 0.5 * torch.sum(1 + log_var - mean**2 - log_var.exp())


def example_loss(model: nn.Module, x: Tensor) -> Tensor:
    """The same as PyTorch's example writes it: a cross-entropy of probabilities."""
    mean, log_var = model.encode(x)
    probabilities = torch.sigmoid(model.decoder(mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)))
    cross_entropy = F.binary_cross_entropy(probabilities, x.flatten(1), reduction="sum")
    return cross_entropy - 0.5 * torch.sum(1 + log_var - mean**2 - log_var.exp())


class Pictures(torch.utils.data.Dataset):
    """MNIST as torchvision gives it: a PIL image made a float tensor for each example asked for, and its label."""

    def __init__(self, x: np.ndarray):
        from PIL import Image

        self.open = Image.fromarray
        self.x, self.labels = torch.from_numpy(x[..., 0]), torch.zeros(len(x), dtype=torch.long)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        picture = self.open(self.x[i].numpy())
        pixels = torch.from_numpy(np.array(picture, np.uint8)).view(28, 28, 1).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255), int(self.labels[i])


def example(*, steps: int, num_workers: int, batch_size: int = 128):
    """The loop of PyTorch's example. Its workers have begun before the time is taken."""
    model = MLP().to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    pictures = Pictures(images(60_000))
    loader = torch.utils.data.DataLoader(pictures, batch_size, shuffle=True, num_workers=num_workers)

    def batches() -> Iterable[Tensor]:
        iterator = iter(loader)
        next(iterator)
        return (x.to(DEVICE) for x, _ in islice(iterator, steps))

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        value = example_loss(model, x)
        value.backward()
        total = value.item()
        optimizer.step()
        return total

    return Prepared(_rate(batches, step, steps * batch_size), _num_params(model))


def in_memory(*, steps: int, batch_size: int, network: str):
    """The fastest loop: floats in memory, a permutation, fused Adam; of its variants the one that is fastest here.

    Compiled or not, and for convolutions the channels last or not.
    """
    torch.set_num_threads(num_cores())
    x = torch.from_numpy(images(60_000)).permute(0, 3, 1, 2).contiguous().to(DEVICE).float().div(255)
    formats = {"": torch.contiguous_format}
    if network == "Convolutional":
        formats[", channels last"] = torch.channels_last
    variants, failed = {}, ""
    for name, memory_format in formats.items():
        model = globals()[network]().to(DEVICE, memory_format=memory_format)
        pixels = x.contiguous(memory_format=memory_format)
        variants[f"not compiled{name}"] = _loop(model, loss, pixels, steps, batch_size)
        compiled = _loop(model, torch.compile(loss), pixels, steps, batch_size)
        try:
            compiled()
            variants[f"compiled{name}"] = compiled
        except RuntimeError as error:  # such as no C++ compiler
            failed = f"; torch.compile failed: {type(error).__name__}"
    choice, run = fastest(variants)
    return Prepared(run, _num_params(model), choice + failed)


def pythae_vae(encoder: nn.Module, decoder: nn.Module, latent_dim: int, side: int = 28) -> nn.Module:
    """pythae's VAE of a module with `encode`, x [B, side * side] -> (mean, log_var), and of one from z to logits."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.network = encoder

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_var = self.network.encode(x.flatten(1))
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(decoder, nn.Sigmoid())

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.network(z).view(-1, 1, side, side))

    config = VAEConfig(input_dim=(1, side, side), latent_dim=latent_dim, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(), decoder=Decoder())


def pythae(*, steps: int, batch_size: int = 128):
    """pythae's trainer on the same network: one epoch of `steps` batches."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    network = MLP()
    decoder = network.decoder
    del network.decoder
    logging.disable(logging.INFO)
    model = pythae_vae(network, decoder, 20)
    x = torch.from_numpy(images(steps * batch_size)).permute(0, 3, 1, 2).float().div(255)
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder, learning_rate=1e-3, per_device_train_batch_size=batch_size, num_epochs=1
        )
        trainer = BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=settings)
        trainer.prepare_training()

    def epoch(number: int) -> float:
        with open(os.devnull, "w") as bar, contextlib.redirect_stderr(bar):
            return trainer.train_step(number)

    return Prepared(_rate(lambda: [1], epoch, len(x)), _num_params(model))


def _loop(model: nn.Module, loss: Callable[..., Tensor], x: Tensor, steps: int, batch_size: int) -> Callable[[], float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def batches() -> Iterable[Tensor]:
        order = torch.randperm(len(x), device=DEVICE)
        return (x[rows] for rows in order[: steps * batch_size].split(batch_size))

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss(model, x) / batch_size
        value.backward()
        optimizer.step()
        return value.detach()

    return _rate(batches, step, steps * batch_size)


def _rate(batches: Callable[[], Iterable], step: Callable, amount: int) -> Callable[[], float]:
    def timed() -> float:
        each = batches()
        start = time.perf_counter()
        float(sum(step(x) for x in each))  # waits for the device
        return amount / (time.perf_counter() - start)

    return timed


def _num_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
