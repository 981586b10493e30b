"""The VAE of PyTorch's examples: 784-400-20 with ReLU, Bernoulli on grey pixels, Adam 1e-3, batch 128, 10 epochs.

python train.py --config=configs/pytorch_example.py

On one CPU core in 36 s: a test loss of 105.25 nats (grey, seed 0); the original reaches 105.55.
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        hidden_sizes=(400,),
        activation="relu",
        network_options={"init_scale": 1 / 3},  # PyTorch's
        latent_dim=20,
        batch_size=128,
        num_epochs=10,
        learning_rate=1e-3,
        picture_epochs=1,
    )
