"""A table of 30 measured columns of very different scales: `python train.py --config=configs/table.py`.

Its data, made by these lines of Python (Wolberg et al. 1993, in scikit-learn):

    from numpy import c_, savetxt
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    names = ",".join([*data.feature_names, "benign"])
    savetxt("breast_cancer.csv", c_[data.data, data.target], "%.8g", ",", header=names, comments="")

On one CPU core in 4 s: a test loss of -13.17 nats and an NLL of -17.84 (`python -m vae_jax evaluate checkpoints/table`,
K = 500), densities of the data as given, on 56 rows that a fixed permutation holds out (seed 0).
"""

from vae_jax.config import Config


def get_config() -> Config:
    return Config(
        dataset="breast_cancer.csv",
        label_column="benign",
        standardize=True,
        likelihood="gaussian_pixel",
        hidden_sizes=(64,),
        activation="gelu",
        latent_dim=6,
        batch_size=64,
        num_epochs=300,
        eval_epochs=20,
        schedule="cosine",
        ema_decay=0.99,
    )
