"""The command `impute`: missing values are replaced by what the VAE expects, or by draws, given the observed ones."""

from argparse import Namespace
from functools import partial
from math import prod

import jax
import numpy as np

from vae_jax import generate, progress
from vae_jax.cli import console
from vae_jax.cli.examples import load as examples_of
from vae_jax.core import condition
from vae_jax.data import inputs
from vae_jax.data.csv_files import write_csv
from vae_jax.data.files import write_npz
from vae_jax.errors import UserError
from vae_jax.evaluate import over_examples
from vae_jax.run import checkpoints

_VALUES = 1 << 24  # numbers in the decoded samples of a batch


def impute(options: Namespace) -> str:
    restored = checkpoints.load(options.run_dir, options.checkpoint, trust=options.trust)
    config, data, vae, params, _ = restored
    if not config.missing:
        raise UserError(
            f"{options.run_dir} was trained without missing values. Train a run with --config.missing=true first."
        )
    csv = options.out.suffix.lower() == ".csv"
    if csv and (not (data.columns or inputs.is_mixed(config)) or options.draws):
        why = "the draws are tables" if options.draws else "the data is not a table"
        raise UserError(f"--out is {options.out}, and {why}. Give the name of an .npz file.")
    examples, label, names, *_ = examples_of(options, restored)

    def one(params, key, x, context):
        own = condition(vae, context)
        if options.draws:
            return generate.imputations(params, key, x, own, options.draws, num_samples=options.num_samples)[:, 0]
        return generate.impute(params, key, x, own, num_samples=options.num_samples)[0]

    batch_size = max(1, min(400, _VALUES // (options.num_samples * prod(data.shape))))
    run, key = over_examples(one, batch_size), jax.random.key(options.seed)
    x = run(params, key, examples, partial(progress.bar, unit="batch", delay=2))
    x = x.swapaxes(0, 1) if options.draws else x  # [draws, N, *shape]
    name = config.label_column if csv and config.label_column else "label"
    arrays = {} if label is None else {name: np.array(names)[label] if names else label}
    if csv:
        columns = inputs.columns_of(x, config, data) | arrays
        if config.conditional == "covariates":
            columns |= inputs.covariates_of(np.asarray(examples.context), config)
        return console.write(options.out, partial(write_csv, columns=columns))
    return console.write(options.out, partial(write_npz, arrays={"x": x, **arrays}))
