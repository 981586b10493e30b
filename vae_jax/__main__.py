"""`python -m vae_jax COMMAND [flags]`: train a VAE and use it. The commands that use it need only its run directory."""

from argparse import Namespace
from pathlib import Path

from vae_jax.cli import console
from vae_jax.errors import UserError


def parse(argv: list[str]) -> Namespace:
    parser = console.Parser(prog="vae_jax", description="Train a VAE and use it.")
    parser.add_version()
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, out: str | None = None, *endings: str) -> console.Parser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("run_dir", metavar="RUN_DIR", type=console.run_folder)
        sub.add_argument("--checkpoint", default="latest", help="latest, best or a step. Default: %(default)s.")
        sub.add_argument(
            "--seed", type=console.natural, default=0, help="Seed of all randomness. Default: %(default)s."
        )
        sub.add_argument("--trust", action="store_true", help="Run the code from outside that the run uses.")
        if out:
            endings = (Path(out).suffix, *endings)
            text = f"The {' or '.join(endings)} file to write. Default: RUN_DIR/{out}."
            sub.add_argument("--out", type=console.output(*endings), help=text)
            sub.set_defaults(file_name=out)
        console.add_cache_flag(sub)
        return sub

    def data_flags(sub: console.Parser, what: str = "A data set, file or folder") -> None:
        sub.add_argument(
            "--data",
            metavar="NAME",
            help=(
                f"{what}. Default: the data that the VAE was trained on. A file or folder without splits of its own "
                "is taken whole, in its order."
            ),
        )
        sub.add_argument("--data_dir", metavar="DIR", help="Where tensorflow-datasets keeps its data.")
        sub.add_argument("--split", choices=("train", "validation", "test"), help="The split to use. Default: test.")

    def evaluation_flags(sub: console.Parser) -> None:
        data_flags(sub)
        text = "Posterior samples K. Default: %(default)s."
        sub.add_argument("--num_samples", type=console.positive, default=500, help=text)
        sub.add_argument("--limit", type=console.positive, help="Evaluate only the first LIMIT examples.")

    console.add_train_flags(commands.add_parser("train", help=console.TRAIN, description=console.TRAIN))

    sub = command("sample", "Draw from the prior and decode.", "sample.png", ".npz", ".csv")
    sub.add_argument("--num", type=console.positive, default=64, help="The number of samples. Default: %(default)s.")
    sub.add_argument("--label", help="Label, for a conditional VAE. Default: all in turn.")
    text = "own: p(z) of the run. fitted: Gaussians fitted to q(z | x) of the training examples. Default: %(default)s."
    sub.add_argument("--prior", choices=("own", "fitted"), default="own", help=text)
    text = "How many Gaussians a fitted prior has. Default: 10."
    sub.add_argument("--num_components", type=console.positive, help=text)
    data_flags(sub, "The data whose covariates the samples take in turn")

    for name, text, num in (
        ("reconstruct", "Pictures of inputs and, under each one, its reconstruction.", 48),
        ("interpolate", "Rows of pictures on the lines between pairs of inputs.", 8),
        ("traverse", "One latent dimension per row, moved while the others keep an input's values.", None),
    ):
        sub = command(name, text, f"{name}.png")
        data_flags(sub)
        if num:
            sub.add_argument("--num", type=console.positive, default=num, help="Inputs or pairs. Default: %(default)s.")
        else:
            sub.add_argument(
                "--index", type=console.natural, default=0, help="Which input, from 0. Default: %(default)s."
            )

    sub = command("manifold", "A grid of decoded points of a two-dimensional latent space.", "manifold.png")
    sub.add_argument("--num", type=console.positive, default=20, help="Points per side. Default: %(default)s.")
    sub.add_argument(
        "--extent", type=console.extent, default=2.0, help="It covers [-EXTENT, EXTENT]^2. Default: %(default)s."
    )
    sub.add_argument("--gaussian", action="store_true", help="Place the points at the quantiles of N(0, 1) instead.")
    sub.add_argument("--label", help="The label, for a conditional VAE. Default: the first one.")
    data_flags(sub, "The data whose first covariates are taken")

    sub = command("encode", "Posterior mean and log-variance of every example, with its label, as .npz.", "latents.npz")
    data_flags(sub)

    sub = command("impute", "Fill in missing values, given the observed ones.", "imputed.npz", ".csv")
    data_flags(sub)
    text = "Posterior samples K, weighted by importance. Default: %(default)s."
    sub.add_argument("--num_samples", type=console.positive, default=1000, help=text)
    text = "Write this many draws, [DRAWS, N, *shape]. Default: the mean of the missing values instead."
    sub.add_argument("--draws", type=console.positive, help=text)

    command("export", "One zip that runs without this package: sampler, encoder, decoder and their weights.", "vae.zip")

    sub = command("evaluate", "ELBO and importance-weighted NLL of a split, in nats: one JSON object on stdout.")
    evaluation_flags(sub)
    sub.add_argument(
        "--ais_chains",
        type=console.natural,
        default=0,
        help="Also bound log p(x) by annealed importance sampling with this many chains. 0: do not.",
    )
    sub.add_argument(
        "--ais_steps", type=console.positive, default=500, help="Temperatures of the chains. Default: %(default)s."
    )
    sub.add_argument("--compute_dtype", choices=("float32", "bfloat16"), help="Default: that of the config.")
    sub.add_argument(
        "--per_example",
        type=console.output(".npz"),
        metavar="FILE",
        help="An .npz file for the figures of every example.",
    )

    text = "How unlikely every example is beside those of the training: a table, and one JSON object on stdout."
    sub = command("score", text, "scores.csv", ".npz")
    data_flags(sub)
    text = "Posterior samples K. Default: %(default)s."
    sub.add_argument("--num_samples", type=console.positive, default=500, help=text)
    sub.add_argument(
        "--num_train",
        type=console.natural,
        default=1000,
        help=(
            "At most this many training examples, evenly chosen, are scored for the column share, the share of them "
            "that are as unlikely. 0: leave it out. "
            "Default: %(default)s."
        ),
    )
    sub.add_argument(
        "--anomaly",
        action="append",
        metavar="LABEL",
        help=(
            "The labels of anomalies, separated by commas or in several flags, for AUROC and average precision. "
            "Default: the labels that did not occur in the training."
        ),
    )

    text = "How well each latent stands for one factor of the data: one JSON object on stdout, and a picture."
    sub = command("disentangle", text, "disentangle.png")
    data_flags(sub)
    text = "Samples of z, for the information without bins. Default: %(default)s."
    sub.add_argument("--num_samples", type=console.positive, default=5000, help=text)
    sub.add_argument(
        "--num_train",
        type=console.positive,
        default=1000,
        help=(
            "At most this many examples train the predictors of SAP and DCI, and as many others test them, by a fixed "
            "permutation. Default: %(default)s."
        ),
    )

    sub = command(
        "report", "One HTML file of everything: figures, curves, pictures and the configuration.", "report.html"
    )
    evaluation_flags(sub)
    sub.set_defaults(ais_chains=0, per_example=None)

    text = "Move the latents in the browser, on a page that this machine serves to itself. Ctrl-C ends it."
    sub = command("explore", text)
    evaluation_flags(sub)
    sub.add_argument("--port", type=console.port, default=0, help="The port of 127.0.0.1. Default: any that is free.")
    sub.add_argument("--browser", action="store_true", help="Also open the page in the browser.")

    text = "Train every combination of seeds, betas and learning rates in one program: a run directory each, a table."
    sub = commands.add_parser("sweep", help=text, description=text)
    sub.add_argument(
        "sweep_dir", metavar="SWEEP_DIR", type=console.run_folder, help="The folder of the runs and of sweep.json."
    )
    sub.add_argument("--seeds", type=console.several(int), metavar="0,1,2", help="Default: that of the config.")
    sub.add_argument("--betas", type=console.several(float), metavar="1,4", help="Default: that of the config.")
    sub.add_argument(
        "--learning_rates", type=console.several(float), metavar="1e-3,3e-4", help="Default: that of the config."
    )
    sub.add_argument("--num_samples", type=console.positive, help="Also measure each NLL with K posterior samples.")
    console.add_config_flags(sub)

    options = parser.parse_args(argv)
    if options.command == "train":
        return console.finish_train(options, Path())
    if options.command == "sweep":
        options.members = console.parse_members(options)
    return options


def main(argv: list[str]) -> int:
    """Run the command in `argv` and return the exit status."""
    return perform(parse(argv))  # the flags are parsed before jax is imported, so that a typo is reported at once


def perform(options: Namespace) -> int:
    """Carry out the command that the flags name, print its result and return the exit status."""
    if "out" in options and options.out is None:
        options.out = options.run_dir / options.file_name
    console.setup_jax(options)
    from vae_jax.cli import commands
    from vae_jax.run import metrics

    try:
        result = getattr(commands, options.command)(options)
    except UserError as error:
        if options.command in ("train", "sweep"):
            raise
        raise UserError(error.for_a_run) from error
    text, status = result if isinstance(result, tuple) else (result, 0)
    if text is not None:
        print(text if isinstance(text, str) else metrics.to_json(text))
    return status


def script() -> None:
    console.script(main)


if __name__ == "__main__":
    script()
