"""The embedded 8x8 digits: `python train.py`.

On 2 CPU cores in under a minute, installation included: a test loss of 23.74 nats (grey, seed 0).
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="digits",
        hidden_sizes=(256, 256),
        activation="gelu",
        latent_dim=16,
        batch_size=100,
        num_epochs=300,
        eval_epochs=20,
        schedule="cosine",
        ema_decay=0.99,
    )
