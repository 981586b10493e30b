"""A 784-256-64-32 ELU VAE of grey MNIST with z = 2 and about 440,000 parameters; Adam 3e-4, batch 128, 50 epochs.

    python train.py --config=configs/elu.py

On one CPU core in 86 s: a test loss of 142.56 nats (grey, seed 0).

The decoder of the original lacks the activation after its first layer:
    --config.network_options='{"decoder_activation": "identity,elu,elu"}'
Its text also derives a Gaussian likelihood with a learned sigma for each pixel, and L samples per example:
    --config.likelihood=gaussian_pixel --config.num_samples=5
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        hidden_sizes=(256, 64, 32),
        activation="elu",
        latent_dim=2,
        output_bias=False,
        batch_size=128,
        num_epochs=50,
        learning_rate=3e-4,
        eval_epochs=5,
    )
