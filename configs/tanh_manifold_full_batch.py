"""Never run to its end: `tanh_manifold.py` to the letter of a well-known notebook, in 20,000 steps of full batches.

    python train.py --config=configs/tanh_manifold_full_batch.py

A 784-512-2 tanh VAE of grey MNIST, RMSProp 1e-3, batches of all 60,000 images. It takes hours on 2 CPU cores.
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        hidden_sizes=(512,),
        activation="tanh",
        latent_dim=2,
        alpha=1.0,
        beta=1.0,
        output_bias=False,
        batch_size=60_000,
        num_epochs=20_000,
        optimizer="rmsprop",
        learning_rate=1e-3,
        eval_epochs=100,
    )
