"""Dynamically binarised MNIST: an MLP VAE with GELU, a cosine schedule and averaged weights.

    python train.py --config=configs/mnist.py
    python -m vae_jax evaluate checkpoints/mnist

On one CPU core in 222 s: NLL 86.88 nats (dynamic binarisation, K = 500, all 10,000 test images, seed 0).
"""

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
