"""A 784-512-2 tanh VAE of grey MNIST, its two latent dimensions drawn as a 20x20 manifold over [-2, 2]^2.

    python train.py --config=configs/tanh_manifold.py

The loss is alpha * cross-entropy + beta * KL. Mini-batches and Adam reach in minutes what the full batches of
`tanh_manifold_full_batch.py` need hours for: on 2 CPU cores in 308 s 141.0 nats on the train split, 146.9 on the test
split (grey, seed 0).
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
        batch_size=500,
        num_epochs=100,
        learning_rate=2e-3,
        schedule="cosine",
        ema_decay=0.995,
        eval_epochs=5,
    )
