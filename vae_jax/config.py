"""The settings of a run, read from a recipe, from flags or from a checkpoint. This module does not import jax."""

import difflib
import json
import os
import runpy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vae_jax.errors import MAX_LAYERS, Natural, UserError

MAX_WHOLE = 2**32 - 1  # the largest seed of jax.random
MAX_STEPS = 2**31 - 1  # an int32 counts the steps
MAX_FLOAT = 3.4e38  # the limit of float32, beyond which a number becomes infinite


COUNTS = ("negative_binomial", "poisson", "zero_inflated_negative_binomial")  # likelihoods of counts
# What names a data set, even if a file or folder has this name.
DATASETS = ("digits", "sprites", "mnist", "fashion_mnist", "kmnist")
# The fields that may name code from outside: see names.py.
PARTS = ("vae", "network", "likelihood", "posterior", "prior", "hierarchy", "objective", "optimizer")

Conditional = bool | Literal["covariates"]


def _setting(default: Any, doc: str, choices: tuple[str, ...] = (), least: int = 0, most: int = MAX_WHOLE) -> Any:
    metadata = {"doc": doc, "choices": choices, "least": least, "most": most}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """All settings that decide the result of a run. Nothing outside a Config can change the result."""

    # fmt: off
    dataset: str = _setting("digits",
        "The data: digits (embedded), sprites (drawn), mnist, fashion_mnist, kmnist, another data set that "
        "tensorflow-datasets has prepared, a .npy, .npz, .csv, .csv.gz, .tsv or .parquet file, or a folder of images.")
    dataset_options: dict[str, Any] = _setting({},
        "Further arguments of the data set sprites, as JSON: image_size, num_shapes, num_scales, num_angles, "
        "num_positions, antialias.")
    classes: tuple[int | str, ...] = _setting((), "Keep only the examples with these labels. Empty: keep all.")
    labels: bool = _setting(True, "The sub-folders of a folder of images are its classes. false: they are not.")
    image_size: tuple[int, ...] = _setting((),
        "The images of a folder are scaled to cover this size, and their centre is cut out: 64, or height,width. "
        "Empty: they must have one size.")
    channels: int = _setting(0, "The images of a folder become grey (1) or RGB (3). 0: RGB if one of them has colours.",
        most=3)
    skip_broken: bool = _setting(False, "Leave out the images of a folder that cannot be read, and list them.")
    features: tuple[str, ...] = _setting((),
        "Of a tensorflow-datasets name with several images or labels: the names of the image and the label to use.")
    label_column: str = _setting("", "The column of a table that holds the label.")
    covariate_columns: tuple[str, ...] = _setting((), "The columns of a table that are covariates, not part of x.")
    validation_size: int = _setting(0,
        "This many training examples are held out for validation. 0: the curves, and the choice of the best "
        "checkpoint, use the test split, so that its figures flatter.")
    binarization: str = _setting("none",
        "How grey pixels become black and white. none: they stay grey. dynamic: x ~ Bernoulli(x) is drawn anew at "
        "each step. static: it is drawn once.", ("none", "dynamic", "static"))
    layout: str = _setting("auto",
        "Where the channels of images in a .npy or .npz file are: last (nhwc), first (nchw), or auto to see it by the "
        "shape.", ("auto", "nhwc", "nchw"))
    missing: bool = _setting(False,
        "NaN in x, or an empty or NA cell of a table, is a value that was not observed. The loss, and every figure, is "
        "of p of the observed values.")
    integers: str = _setting("auto",
        "What the integers v of an array are. bytes: they stand for v/255. counts: they are themselves, of any size, "
        "and all of x must be counts, in a table too. auto: counts for a built-in likelihood of counts, else bytes.",
        ("auto", "bytes", "counts"))
    standardize: bool = _setting(False,
        "The networks see each element of x, and each covariate, with mean 0 and variance 1 over the training "
        "examples. Samples and figures stay those of the data as given.")
    stream: bool = _setting(False,
        "Read the training examples from disk as they are needed, for a .npy file that is larger than memory.")
    conditional: Conditional = _setting(False,
        "Give the label to the encoder and the decoder. covariates: give them the numbers c of each example instead.")
    context: str = _setting("both", "Which networks get the label or the covariates.", ("both", "encoder", "decoder"))
    vae: str = _setting("",
        "A whole VAE of your own, in place of the fields from network to output_bias: FILE.py:FUNCTION or "
        "MODULE:FUNCTION, called as FUNCTION(data, **vae_options). So may network, likelihood, posterior, prior, "
        "hierarchy, objective and optimizer be named. Empty: these fields make the VAE.")
    vae_options: dict[str, Any] = _setting({}, "Further arguments of vae, as JSON.")
    network: str = _setting("mlp", "The encoder and the decoder: the name of a function in vae_jax/networks.py.")
    network_options: dict[str, Any] = _setting({}, "Further arguments of the network, as JSON.")
    hidden_sizes: tuple[int, ...] = _setting((400,),
        "The units of the encoder's dense layers. The decoder has them in reverse order.")
    activation: str = _setting("relu",
        "A function of jax.nn, or one per hidden layer, separated by commas. glu halves the units.")
    compute_dtype: str = _setting("float32",
        "The type of the factors in the network's matrix products. Everything else is float32.",
        ("float32", "bfloat16"))
    latent_dim: int = _setting(20, "The number of dimensions of z.", least=1)
    likelihood: str = _setting("bernoulli",
        "p(x|z): the name of a function in vae_jax/likelihoods.py. For colour images choose discretized_logistic.")
    likelihood_options: dict[str, Any] = _setting({}, "Further arguments of the likelihood, as JSON.")
    posterior: str = _setting("diagonal",
        "q(z|x): the name of a function in vae_jax/posteriors.py. categorical, fsq and vq make z discrete.")
    posterior_options: dict[str, Any] = _setting({}, "Further arguments of the posterior, as JSON.")
    prior: str = _setting("standard_normal",
        "p(z): the name of a function in vae_jax/priors.py. A discrete z needs uniform_codes or factorized_codes.")
    prior_options: dict[str, Any] = _setting({}, "Further arguments of the prior, as JSON.")
    hierarchy: str = _setting("",
        "Adds latents above z, one (markov, hvae) or several (ladder): the name of a function in "
        "vae_jax/hierarchies.py. Empty: there is one latent.")
    hierarchy_options: dict[str, Any] = _setting({}, "Further arguments of the hierarchy, as JSON.")
    output_bias: bool = _setting(True, "The decoder's last bias starts at the mean, or at the levels, of the data.")
    objective: str = _setting("elbo",
        "What training maximises: the ELBO, a bound of num_samples importance weights (iwae to thermodynamic), or an "
        "ELBO with another penalty on q(z|x) (capacity to dip), or with that of posterior vq.",
        ("elbo", "iwae", "miwae", "piwae", "ciwae", "renyi", "thermodynamic", "capacity", "total_correlation", "mmd",
         "dip", "vq"))
    objective_options: dict[str, Any] = _setting({}, "Further arguments of the objective, as JSON.")
    estimator: str = _setting("pathwise",
        "The estimator of the gradient. stl (sticking the landing) is for elbo, mmd and dip, dreg (doubly "
        "reparameterised) for iwae, covariance for thermodynamic.", ("pathwise", "stl", "dreg", "covariance"))
    free_bits: float = _setting(0.0,
        "Free bits: the KL of each latent dimension, or of each level of a hierarchy, counts as at least this many "
        "nats in the loss.")
    kl: str = _setting("auto",
        "The KL in the loss. auto: in closed form between Gaussians and of codes, else estimated from the samples. "
        "analytic: only in closed form. monte_carlo: always estimated.", ("auto", "analytic", "monte_carlo"))
    num_samples: int = _setting(1, "Posterior samples K per example and step.", least=1)
    alpha: float = _setting(1.0, "The weight of -log p(x|z) in the loss.")
    beta: float = _setting(1.0, "The weight of the KL in the loss.")
    beta_warmup_steps: int = _setting(0, "beta rises from 0 over this many steps.", most=MAX_STEPS)
    batch_size: int = _setting(128,
        "Examples per step. The last examples of a shuffled epoch, too few for a batch, are left out.", least=1)
    num_epochs: int = _setting(50, "Passes over the training examples.", least=1)
    optimizer: str = _setting("adam", "The name of an optimiser in optax.")
    optimizer_options: dict[str, Any] = _setting({}, "Further arguments of the optimiser, as JSON.")
    learning_rate: float = _setting(1e-3, "The learning rate per step, at its peak.")
    schedule: str = _setting("constant",
        "How the learning rate changes over the run. burda: 3^i epochs at 10^(-i/7) of it.",
        ("constant", "cosine", "burda"))
    warmup_steps: int = _setting(0, "The learning rate rises from 0 over this many steps.", most=MAX_STEPS)
    clip_norm: float = _setting(0.0,
        "A gradient with a larger global norm is scaled down to this norm. 0: it is not scaled.")
    ema_decay: float = _setting(0.0,
        "Decay per step of the averaged weights, which are evaluated. It rises as (1 + step) / (10 + step), so "
        "that a run of n steps reaches at most about 1 - 9/n. 0: the weights are not averaged.")
    eval_epochs: int = _setting(1,
        "Epochs between evaluations. Each evaluation saves a checkpoint, and so do 5 minutes without one.", least=1)
    picture_epochs: int = _setting(0,
        "Epochs between pictures that stay in the run directory. 0: pictures are drawn at the end only.")
    init_from: str = _setting("",
        "A run directory of the same model: this run begins with its weights. Empty: the weights begin anew.")
    seed: int = _setting(0, "The seed of everything random.")
    # fmt: on

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for f in fields(self):
            object.__setattr__(self, f.name, _typed(f.name, getattr(self, f.name), hints[f.name]))
            if f.name in PARTS and getattr(self, f.name).endswith(".py"):
                raise UserError(
                    f"{f.name} is {getattr(self, f.name)!r}, without the name of a function of that file. Give "
                    f"--config.{f.name}={getattr(self, f.name)}:NAME."
                )
            choices = f.metadata["choices"]
            own = f.name == "objective" and ":" in getattr(self, f.name)  # see names.py
            if choices and getattr(self, f.name) not in choices and not own:
                raise unknown(f.name, getattr(self, f.name), choices)
            if hints[f.name] in (int, float) and getattr(self, f.name) < f.metadata["least"]:
                raise UserError(f"{f.name} is {getattr(self, f.name)}; expected at least {f.metadata['least']}.")
            if hints[f.name] is int and getattr(self, f.name) > f.metadata["most"]:
                raise UserError(f"{f.name} is {getattr(self, f.name)}; expected at most {f.metadata['most']}.")
            if f.name.endswith("_options"):
                _check_options(f.name, getattr(self, f.name))
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate is {self.learning_rate}; expected a positive number.")
        if self.ema_decay >= 1:
            raise UserError(f"ema_decay is {self.ema_decay}; expected a number in [0, 1).")
        _check_sizes("hidden_sizes", self.hidden_sizes)


def digits() -> Config:
    """The settings of a command without a recipe: the embedded 8x8 digits."""
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


def load_recipe(path: str | Path) -> Config:
    """The Config that `get_config()` of a Python file returns.

    Relative paths in it become absolute if they lead from the folder of that file to something that exists. The others
    lead from the current folder, as all paths in flags do.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no config file {path}. Give a recipe, such as --config=configs/mnist.py.")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise UserError("expected a function get_config() that returns a vae_jax.config.Config.")
        config = get_config()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise UserError(f"{path} failed: {reason}. Expected get_config() to return a vae_jax.config.Config.") from None
    if not isinstance(config, Config):
        raise UserError(f"get_config() of {path} returned a {type(config).__name__}; expected a vae_jax.config.Config.")
    return _beside(config, os.path.dirname(os.path.abspath(path)))


def _beside(config: Config, folder: str) -> Config:
    """The config with the absolute paths of the files in `folder` that it names."""
    moved: dict[str, Any] = {}
    for name in (*PARTS, "dataset", "init_from"):
        value = getattr(config, name)
        where, colon, function = value.rpartition(":") if name in PARTS else (value, "", "")
        path = os.path.abspath(os.path.join(folder, os.path.expanduser(where)))
        is_path = where.endswith(".py") if name in PARTS else where and where not in DATASETS
        if is_path and os.path.exists(path):
            moved[name] = path + colon + function
    return replace(config, **moved)


def override(config: Config, values: dict[str, str]) -> Config:
    """`config` with the fields in `values` set from text, as a command line gives it."""
    hints = get_type_hints(Config)
    for name in values:
        if name not in hints:
            raise unknown("field", name, tuple(hints))
    return replace(config, **{name: parse(name, text, hints[name]) for name, text in values.items()})


def differences(config: Config, other: Config, names: Iterable[str] | None = None) -> dict[str, tuple[Any, Any]]:
    """The fields that differ between two configs, with both values as in JSON. names: compare only these fields."""
    a, b = to_json(config), to_json(other)
    return {name: (a[name], b[name]) for name in names or a if a[name] != b[name]}


def to_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))


def from_json(values: dict[str, Any]) -> Config:
    names = {f.name for f in fields(Config)}
    for name in values:
        if name not in names:
            raise UserError(f"The config has a field {name!r} that this version does not know. Update vae_jax.")
    return Config(**values)


def parse(name: str, text: str, kind: Any) -> Any:
    """`text` as a value of type `kind`. Raises UserError if that is impossible; `name` is for the message."""
    try:
        if kind in (bool, Conditional):
            words = {"true": True, "1": True, "false": False, "0": False}
            return (words | {"covariates": "covariates"} if kind == Conditional else words)[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        if get_origin(kind) is tuple:
            item, inside = get_args(kind)[0], text.strip("()[] ").removesuffix(",")
            item = _int_or_text if item == int | str else item
            return tuple(item(part.strip()) for part in inside.split(",")) if inside else ()
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    except (ValueError, KeyError, RecursionError):
        pass
    raise UserError(f"{name} is {text!r}; expected {_describe(kind)}.")


def unknown(kind: str, name: Any, choices: tuple[str, ...]) -> UserError:
    """The error for a name that is not among `choices`. It suggests the most similar choice."""
    close = difflib.get_close_matches(str(name), choices, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UserError(f"Unknown {kind} {name!r}.{hint} Choose one of: {', '.join(choices)}.")


def _int_or_text(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as type `kind`, if nothing is lost: 4 may be a float and [400] a tuple, but '4' and 0.5 are not ints."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= MAX_FLOAT else inf
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(name, item, get_args(kind)[0]) for item in value)
    if kind == Conditional and value == "covariates":
        return value
    if kind == int | str:
        kind = str if isinstance(value, str) else int
    expected = bool if kind == Conditional else get_origin(kind) or kind
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise UserError(f"{name} is {value!r}; expected {_describe(kind)}.")
    if expected is float and not isfinite(value):
        raise UserError(f"{name} is {value}; expected a finite number.")
    if expected is float and abs(value) > MAX_FLOAT:
        raise UserError(f"{name} is {value:g}; expected at most {MAX_FLOAT:g}, what float32 holds.")
    return value


def check_option(name: str, value: Any, kind: Any) -> Any:
    """`value`, if it fits `kind`, the annotation of an argument. A whole number is a size, and positive, or Natural."""
    if kind == Natural:
        if _typed(name, value, int) < 0:
            raise UserError(f"{name} is {value}; expected at least 0.")
        return value
    if kind == Sequence[int]:
        kind = tuple[int, ...]
    if kind not in (int, float, str, bool, tuple[int, ...]):
        return value
    typed = _typed(name, value, kind)
    if kind in (int, tuple[int, ...]):
        _check_sizes(name, typed)
    return value


def _check_sizes(name: str, value: int | tuple[int, ...]) -> None:
    """Raise UserError unless every size is positive and there are at most MAX_LAYERS of them."""
    sizes = value if isinstance(value, tuple) else (value,)
    if any(size < 1 for size in sizes):
        raise UserError(f"{name} is {value}; expected positive whole numbers.")
    if len(sizes) > MAX_LAYERS:
        raise UserError(f"{name} has {len(sizes)} layers; expected at most {MAX_LAYERS}.")


def _check_options(name: str, value: Any) -> None:
    """Raise UserError for numbers that float32 does not hold."""
    if isinstance(value, int | float) and not abs(value) <= MAX_FLOAT:
        raise UserError(f"{name} holds {value:g}; expected finite numbers, at most {MAX_FLOAT:g}.")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _check_options(name, item)


def _describe(kind: Any) -> str:
    if get_origin(kind) is tuple:
        items = {int: "whole numbers", str: "names", int | str: "labels"}
        return f"{items[get_args(kind)[0]]} separated by commas"
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    names |= {Conditional: "true, false or covariates"}
    return names.get(kind, "a JSON object such as '{\"name\": 1}'")
