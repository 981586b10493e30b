"""The command explore: the latent space of a run in the browser."""

import os
import webbrowser
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from socket import create_server, socket

from vae_jax.cli import examples
from vae_jax.core import Examples
from vae_jax.data import images
from vae_jax.errors import UserError
from vae_jax.run import checkpoints
from vae_jax.run.checkpoints import Restored
from vae_jax.show import explorer


def listen(port: int) -> socket:
    """Open a socket on 127.0.0.1, where no other machine reaches it. port: 0 takes any that is free."""
    try:
        return create_server(("127.0.0.1", port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f"--port is {port}, which cannot be used ({reason}). Give another one, or leave it out."
        ) from None


def explore(options: Namespace) -> None:
    """Serve the page until the program is stopped. Its address is the one line on stdout."""
    if find_spec("nicegui") is None:
        raise UserError("explore needs the package nicegui. Install it: python -m pip install 'vae_jax[explore]'")
    with listen(options.port) as sock:
        restored = checkpoints.load(options.run_dir, options.checkpoint, trust=options.trust)
        chosen = examples.load(options, restored, options.limit)
        made = explorer.make(restored, *chosen[:3], num_samples=options.num_samples, seed=options.seed)

        from vae_jax.show import explorer_page  # which imports nicegui

        def read(path: Path, label: str | None) -> tuple[Examples, str]:
            if path.suffix.lower() in images.SUFFIXES:
                return examples.of_picture(path, label, restored)
            found = _of_file(path, restored)
            one = Examples(found.x[:1], None if found.context is None else found.context[:1])
            return one, "" if len(found.x) == 1 else f", the first of {len(found.x)} examples"

        def ready(url: str) -> None:
            print(url, flush=True)
            if options.browser:
                webbrowser.open(url)

        explorer_page.serve(made, read, sock, options.run_dir.resolve().name, ready)


def _of_file(path: Path, restored: Restored) -> Examples:
    """The examples of a file. A table may lack the label column, unless the VAE needs it."""
    options = Namespace(data=str(path), data_dir=None, split=None)
    try:
        return examples.load(options, restored).examples
    except UserError:
        if restored.config.conditional is True or not restored.config.label_column:
            raise
        with suppress(UserError):
            config = replace(restored.config, label_column="")
            return examples.load(options, restored._replace(config=config)).examples
        raise
