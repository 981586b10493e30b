"""The embedded 8x8 digits: `python train.py`.

On 2 CPU cores in under a minute, installation included: a test loss of 23.74 nats (grey, seed 0).
"""

from vae_jax.config import Config, digits


def get_config() -> Config:
    return digits()
