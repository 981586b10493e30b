"""A short budget on dynamically binarised MNIST, to compare objectives, priors and hierarchies at equal terms.

    python train.py --config=configs/compare.py
    python -m vae_jax sweep checkpoints/compare_elbo --config=configs/compare.py --seeds=0,1,2 --num_samples=500

10 epochs of 784-200-200-40 with GELU, a cosine schedule and averaged weights. README.md beside this file has the
table: the ELBO reaches an NLL of 95.84 nats (dynamic binarisation, K = 500, all 10,000 test images, 3 seeds).
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="mnist",
        binarization="dynamic",
        hidden_sizes=(200, 200),
        activation="gelu",
        latent_dim=40,
        batch_size=128,
        num_epochs=10,
        learning_rate=2e-3,
        schedule="cosine",
        ema_decay=0.999,
        eval_epochs=5,
    )
