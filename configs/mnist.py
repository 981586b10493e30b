"""Dynamically binarised MNIST: `python train.py --config=configs/mnist.py`."""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        binarization="dynamic",
        hidden_sizes=(512, 512),
        activation="gelu",
        latent_dim=50,
        batch_size=128,
        num_epochs=60,
        learning_rate=2e-3,
        schedule="cosine",
        ema_decay=0.999,
        eval_epochs=5,
    )
