"""Malformed input by tables: what a stranger may hand over, and parts of the one line that answers it.

To add a case is to add a line. `test_hostile.py` runs each of them in this process; test_bad_input.py has the plain
mistakes.
"""

import io
import json
import os
import struct
import warnings
import zipfile
import zlib

import numpy as np
from PIL import Image

from vae_jax.run import digests

# train.py on the digits: id -> (flags, parts of the line)

BIG = 10**12
FLAGS = {
    "layer of 10^12": (["hidden_sizes=1000000000000"], ["the parameters take", "bytes, and the limit"]),
    "layers larger than memory": (["hidden_sizes=4000000,4000000"], ["the parameters take", "bytes, and the limit"]),
    "layer beyond int64": (
        ["hidden_sizes=99999999999999999999"],
        ["weights of shape (64, 99999999999999999999); expected"],
    ),
    "endless layers": (["hidden_sizes=" + "2," * 5000], ["hidden_sizes has 5000 layers; expected at most 100"]),
    "negative layer": (["hidden_sizes=8,-8"], ["hidden_sizes is (8, -8); expected positive"]),
    "half a layer": (["hidden_sizes=8.5"], ["hidden_sizes is '8.5'; expected whole numbers"]),
    "only commas": (["hidden_sizes=,,"], ["hidden_sizes is ',,'; expected whole numbers"]),
    "endless latent": (["latent_dim=1000000000"], ["the parameters take", "bytes, and the limit"]),
    "full covariance of a large latent": (
        ["latent_dim=100000", "posterior=full_covariance"],
        ["posterior 'full_covariance': latent_dim is 100000; expected at most 2000"],
    ),
    "endless epochs": (["num_epochs=4294967295"], ["num_epochs is 4294967295; expected at most 143165576"]),
    "warm-up beyond the count": (["beta_warmup_steps=4294967295"], ["beta_warmup_steps", "at most 2147483647"]),
    "learning rate beyond float32": (["learning_rate=1e300"], ["learning_rate is 1e+300; expected at most 3.4e+38"]),
    "learning rate below float64": (["learning_rate=1e-400"], ["learning_rate is 0.0; expected a positive number"]),
    "beta beyond float32": (["beta=1e39"], ["beta is 1e+39; expected at most 3.4e+38"]),
    "negative alpha": (["alpha=-0.5"], ["alpha is -0.5; expected at least 0"]),
    "negative decay": (["ema_decay=-0.1"], ["ema_decay is -0.1; expected at least 0"]),
    "negative norm": (["clip_norm=-1"], ["clip_norm is -1.0; expected at least 0"]),
    "negative free bits": (["free_bits=-1"], ["free_bits is -1.0; expected at least 0"]),
    "no batch": (["batch_size=0"], ["batch_size is 0; expected at least 1"]),
    "hexadecimal": (["batch_size=0x10"], ["batch_size is '0x10'; expected a whole number"]),
    "empty number": (["batch_size="], ["batch_size is ''; expected a whole number"]),
    "digits without end": (["batch_size=" + "9" * 5000], ["expected a whole number"]),
    "no evaluation": (["eval_epochs=0"], ["eval_epochs is 0; expected at least 1"]),
    "negative pictures": (["picture_epochs=-1"], ["picture_epochs is -1; expected at least 0"]),
    "negative validation": (["validation_size=-1"], ["validation_size is -1; expected at least 0"]),
    "class in words": (["classes=three"], ["no example of ['three']", "Choose among [0, 1,"]),
    "negative class": (["classes=-1"], ["no example of [-1]", "Choose among"]),
    "yes is not a switch": (["output_bias=yes"], ["output_bias is 'yes'; expected true or false"]),
    "stream of a name": (["stream=true"], ["stream is true, but 'digits' is not a .npy file"]),
    "deep list": (["network_options=" + "[" * 100_000], ["expected a JSON object"]),
    "deep object": (["network_options=" + '{"a":' * 9000 + "1" + "}" * 9000], ["expected a JSON object"]),
    "nested option": (["prior_options=" + '{"a":' * 20 + "1" + "}" * 20], ["has no option 'a'"]),
    "JSON cut off": (['likelihood_options={"sigma": '], ["expected a JSON object"]),
    "JSON text": (['optimizer_options="adam"'], ["expected a JSON object"]),
    "JSON null": (["posterior_options=null"], ["expected a JSON object"]),
    "sigma is not a number": (["likelihood=gaussian", 'likelihood_options={"sigma": NaN}'], ["holds nan", "finite"]),
    "sigma without end": (["likelihood=gaussian", 'likelihood_options={"sigma": 1e999}'], ["holds inf", "finite"]),
    "sigma too small": (["likelihood=gaussian", 'likelihood_options={"sigma": 1e-300}'], ["sigma is 1e-300; expected"]),
    "sigma is a switch": (["likelihood=gaussian", 'likelihood_options={"sigma": true}'], ["sigma is True; expected a"]),
    "sigma is a list": (["likelihood=gaussian", 'likelihood_options={"sigma": [1]}'], ["sigma is [1]; expected a"]),
    "one level": (["likelihood=categorical", 'likelihood_options={"num_levels": 1}'], ["num_levels is 1; expected"]),
    "levels without end": (
        ["likelihood=categorical", f'likelihood_options={{"num_levels": {BIG}}}'],
        ["weights of shape (8, 64000000000000); expected less than"],
    ),
    "half a level": (["likelihood=categorical", 'likelihood_options={"num_levels": 2.5}'], ["num_levels is 2.5"]),
    "no component": (["prior=mixture", 'prior_options={"num_components": 0}'], ["num_components is 0", "positive"]),
    "negative components": (["prior=mixture", 'prior_options={"num_components": -1}'], ["num_components is -1"]),
    "components in words": (["prior=mixture", 'prior_options={"num_components": "a"}'], ["is 'a'; expected a whole"]),
    "pseudo-inputs without end": (
        ["prior=vamp", f'prior_options={{"num_components": {BIG}}}'],
        ["parameters take", "limit"],
    ),
    "mixture larger than memory": (
        ["prior=mixture", "latent_dim=10000", 'prior_options={"num_components": 16000000}'],
        ["the parameters take", "limit"],
    ),
    "flow without couplings": (["prior=real_nvp", 'prior_options={"num_couplings": 0}'], ["num_couplings is 0"]),
    "flow of many couplings": (["prior=real_nvp", 'prior_options={"num_couplings": 99999}'], ["at most 100"]),
    "flow of one dimension": (
        ["prior=real_nvp", "latent_dim=1"],
        ["needs at least 1 coupling and 2 dimensions; got 6 and 1"],
    ),
    "flow of a negative layer": (["prior=real_nvp", 'prior_options={"hidden_size": -1}'], ["hidden_size is -1"]),
    "flow without context": (["posterior=flow", 'posterior_options={"context_size": -9}'], ["context_size is -9"]),
    "negative scale": (['network_options={"init_scale": -1}'], ["init_scale is -1; expected at least 0"]),
    "scale in words": (['network_options={"init_scale": "a"}'], ["init_scale is 'a'; expected a number"]),
    "unknown decoder activation": (['network_options={"decoder_activation": "no"}'], ["Unknown activation 'no'"]),
    "channels that are one": (
        ["network=convolutional", 'network_options={"channels": 3}'],
        ["channels is 3; expected"],
    ),
    "channels without end": (
        ["network=convolutional", f'network_options={{"channels": [{BIG}]}}'],
        ["weights of shape (3, 3, 1000000000000, 1000000000000); expected less than"],
    ),
    "endless convolutions": (
        ["network=convolutional", f'network_options={{"channels": {[1] * 500}}}'],
        ["channels has 500 layers; expected at most 100"],
    ),
    "no channel": (["network=convolutional", 'network_options={"channels": []}'], ["channels is []; expected"]),
    "unknown hierarchy": (["hierarchy=nope"], ["Unknown hierarchy 'nope'", "hvae, ladder, markov"]),
    "options of no hierarchy": (['hierarchy_options={"latent_dim": 3}'], ["without a --config.hierarchy"]),
    "hierarchy of nothing": (["hierarchy=markov", 'hierarchy_options={"latent_dim": 0}'], ["latent_dim is 0"]),
    "hierarchy in words": (["hierarchy=hvae", 'hierarchy_options={"hidden_sizes": "abc"}'], ["hidden_sizes is 'abc'"]),
    "hierarchy with an empty layer": (
        ["hierarchy=hvae", 'hierarchy_options={"hidden_sizes": [0]}'],
        ["hidden_sizes is (0,)"],
    ),
    "codes with the default prior": (
        ["posterior=fsq", "latent_dim=4"],
        ["needs a prior of codes", "Set --config.prior=uniform_codes"],
    ),
    "codes of a Gaussian": (["prior=uniform_codes"], ["needs a posterior of codes", "Set --config.posterior=fsq"]),
    "levels that do not fit": (
        ["posterior=fsq", "prior=uniform_codes", "latent_dim=6"],
        ["latent_dim is 6; expected a multiple of the 4 levels"],
    ),
    "levels of text": (
        ["posterior=fsq", "prior=uniform_codes", 'posterior_options={"levels": "8"}'],
        ["levels is '8'; expected whole numbers"],
    ),
    "codebook that nothing trains": (
        ["posterior=vq", "prior=uniform_codes", "latent_dim=4"],
        ["never train the codebook", "Set --config.objective=vq"],
    ),
    "bound of relaxed samples": (
        ["posterior=categorical", "prior=uniform_codes", "latent_dim=10", "objective=iwae"],
        ["objective 'iwae' needs log q(z | x)", "straight_through"],
    ),
    "free bits of a hierarchy": (["hierarchy=markov", "free_bits=0.1"], ["free_bits is 0.1", "no hierarchy"]),
    "free bits of a mixture": (["prior=mixture", "free_bits=0.1"], ["free_bits is 0.1", "prior=standard_normal"]),
    "free bits of a full covariance": (["posterior=full_covariance", "free_bits=1"], ["posterior=diagonal"]),
    "free bits from samples": (["kl=monte_carlo", "free_bits=1"], ["free_bits needs --config.kl=auto"]),
    "dreg of the ELBO": (["estimator=dreg"], ["estimator 'dreg' is only for objective 'iwae', not 'elbo'. Choose stl"]),
    "stl of the IWAE": (["objective=iwae", "estimator=stl"], ["estimator 'stl' is biased", "Choose dreg"]),
    "stl of a closed form": (["estimator=stl"], ["needs --config.kl=monte_carlo"]),
    "unknown estimator": (["estimator=reinforce"], ["Unknown estimator 'reinforce'", "pathwise, stl, dreg"]),
    "optimizer that is a helper": (["optimizer=chain"], ["Unknown optimizer 'chain'. Choose one of"]),
    "optimizer that is private": (["optimizer=_deprecated_dpsgd"], ["Unknown optimizer '_deprecated_dpsgd'"]),
    "learning rate set twice": (['optimizer_options={"learning_rate": 3}'], ["learning_rate", "Set other options"]),
    "decay that is not a number": (['optimizer_options={"b1": NaN}'], ["optimizer_options holds nan; expected finite"]),
    "optimizer option as a list": (
        ["optimizer=adafactor", 'optimizer_options={"min_dim_size_to_factor": []}'],
        ["optimizer 'adafactor'", "Set other options"],
    ),
    "colours of a terminal": (["optimizer=\x1b[31m"], ["\\x1b[31m"]),
    "two lines": (["dataset=a\nb"], ["Unknown data set 'a\\nb'"]),
    "end of a C string": (["dataset=a\0b"], ["Unknown data set 'a\\x00b'"]),
    "no name": (["dataset="], ["Unknown data set ''"]),
    "device": (["dataset=/dev/zero"], ["No file or folder '/dev/zero'"]),
    "name of a megabyte": (["dataset=" + "x" * 10**6], ["Unknown data set", " ... ", "Choose one of"]),
}
OTHER_FLAGS = {
    "workdir without a name": (["--workdir="], ["--workdir: '' is not the name of a file or folder"]),
    "workdir with a zero": (["--workdir=a\0b"], ["'a\\x00b' is not the name of a file or folder"]),
    "workdir of two lines": (["--workdir=/dev/null/a\nb"], ["/dev/null/a\\nb cannot be written"]),
    "workdir of a long name": (["--workdir=" + "a" * 300], ["File name too long"]),
    "recipe with a zero": (["--config=a\0b"], ["There is no config file a\\x00b"]),
    "recipe without a name": (["--config="], ["There is no config file"]),
    "recipe that is a device": (["--config=/dev/zero"], ["There is no config file /dev/zero"]),
    "field without a name": (["--config.=3"], ["Unknown flag --config.."]),
    "dashes": (["---"], ["Unknown flag ---"]),
    "processes without a coordinator": (
        ["--num_processes=2", "--process_id=0"],
        ["need --coordinator too. Give its HOST:PORT"],
    ),
    "coordinator alone": (["--coordinator=localhost:9999"], ["needs --num_processes and --process_id"]),
    "coordinator without a port": (
        ["--coordinator=localhost", "--num_processes=2", "--process_id=0"],
        ["--coordinator is 'localhost'; expected HOST:PORT"],
    ),
    "coordinator of a large port": (
        ["--coordinator=localhost:99999", "--num_processes=2", "--process_id=0"],
        ["--coordinator is 'localhost:99999'; expected HOST:PORT"],
    ),
    "process past the last": (
        ["--coordinator=localhost:9999", "--num_processes=2", "--process_id=2"],
        ["--process_id is 2; expected less than the 2"],
    ),
}

# Recipes in Python: id -> (text, parts of the line)

IMPORT = "from vae_jax.config import Config\n"
RECIPES = {
    "empty": ("", ["expected a function get_config()"]),
    "another name": ("def config(): pass\n", ["expected a function get_config()"]),
    "no function": ("get_config = 3\n", ["TypeError", "not callable"]),
    "argument": ("def get_config(seed): pass\n", ["TypeError", "'seed'"]),
    "nothing returned": ("def get_config(): pass\n", ["returned a NoneType; expected a vae_jax.config.Config"]),
    "dictionary": ("def get_config(): return {'beta': 1}\n", ["returned a dict; expected a vae_jax.config.Config"]),
    "class": (IMPORT + "def get_config(): return Config\n", ["returned a type; expected"]),
    "syntax": ("def get_config(:\n", ["SyntaxError"]),
    "indentation": ("def get_config():\nreturn 3\n", ["IndentationError"]),
    "zero": ("a = 'b\0'\n", ["failed"]),
    "no text": (b"\xff\xfe\x00\x01", ["failed"]),
    "missing module": ("import no_such_module\n", ["ModuleNotFoundError", "no_such_module"]),
    "endless recursion": ("def get_config(): return get_config()\n", ["RecursionError"]),
    "exit": ("raise SystemExit(0)\n", ["SystemExit"]),
    "division": ("def get_config(): return 1 / 0\n", ["ZeroDivisionError"]),
    "raises two lines": ("raise ValueError('a\\nb')\n", ["ValueError: a b"]),
    "assertion": ("assert False\n", ["AssertionError"]),
    "unknown field": (IMPORT + "def get_config(): return Config(betas=1)\n", ["unexpected keyword argument 'betas'"]),
    "number as text": (IMPORT + "def get_config(): return Config(beta='1')\n", ["beta is '1'; expected a number"]),
    "set of layers": (
        IMPORT + "def get_config(): return Config(hidden_sizes={8})\n",
        ["hidden_sizes is {8}; expected"],
    ),
    "layers as one": (IMPORT + "def get_config(): return Config(hidden_sizes=8)\n", ["hidden_sizes is 8; expected"]),
    "options as a list": (IMPORT + "def get_config(): return Config(prior_options=[1])\n", ["prior_options is [1]"]),
    "number that overflows": (IMPORT + "def get_config(): return Config(beta=10**400)\n", ["beta is inf; expected"]),
    "a field assigned": (
        IMPORT + "def get_config():\n    c = Config()\n    c.beta = 2\n    return c\n",
        ["FrozenInstanceError", "beta"],
    ),
}

# Data: id -> (what writes it into a folder and gives its path, parts of the line)


def npy(shape, descr="'|u1'", order="False", values=b""):
    """A .npy file that says what it likes; the arguments are the text of its header."""
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n", values)


def header(text, values=b"", version=1, length=None):
    length = len(text) if length is None else length
    return b"\x93NUMPY" + struct.pack("<BBH" if version == 1 else "<BBI", version, 0, length) + text.encode() + values


def file(name, content):
    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def archive(*members, method=zipfile.ZIP_DEFLATED, patch=()):
    """An .npz of (name, bytes); patch: (offset in the last entry of its directory, format, value)."""

    def write(folder):
        stream = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as zipped:
            warnings.simplefilter("ignore")
            for name, content in members:
                zipped.writestr(name, content)
        content = bytearray(stream.getvalue())
        for offset, form, value in patch:
            struct.pack_into(form, content, content.rfind(b"PK\1\2") + offset, value)
        return file("x.npz", content)(folder)

    return write


def sparse(name, start, size):
    """A file that goes on with `size` zeros and takes no room on the disk."""

    def write(folder):
        path = file(name, start)(folder)
        os.truncate(path, len(start) + size)
        return path

    return write


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width=8, height=8, depth=8, color=0, extra=b"", values=None):
    size = depth // 8 * {0: 1, 2: 3, 4: 2}[color] * 8
    values = zlib.compress((b"\0" + bytes(size)) * 8) if values is None else values
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + extra + chunk(b"IDAT", values) + chunk(b"IEND", b"")


def saved(form, **options):
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, form, **options)
    return stream.getvalue()


def images(*contents, links=(), device=None):
    """A folder of images; links: what further images in it point to."""

    def write(folder):
        (folder / "images").mkdir()
        (folder / "outside.png").write_bytes(png())
        for i, content in enumerate(contents):
            (folder / "images" / f"{i}.png").write_bytes(content)
        for i, target in enumerate(links):
            os.symlink(target, folder / "images" / f"link{i}.png")
        if device:
            os.mkfifo(folder / "images" / device)
        return folder / "images"

    return write


BOMB = zlib.compress(bytes(1 << 26), 9)
ROWS = npy("(30, 4)", values=bytes(range(120)))
SMALL = b"PK\3\4"
DATA = {
    "10^12 values": (file("x.npy", npy("(1000000000000,)")), ["announces 1000000000000 bytes", "but it holds 0"]),
    "10^36 values": (file("x.npy", npy(f"({10**18}, {10**18})")), ["its header announces 1000", "but it holds 0"]),
    "5000 digits": (file("x.npy", npy(f"({'9' * 900},)")), ["its header announces 999"]),
    "negative shape": (file("x.npy", npy("(-8, -8)", values=bytes(64))), ["announces the shape (-8, -8)"]),
    "fractional shape": (file("x.npy", npy("(1.5,)")), ["its header is not one that numpy.save writes"]),
    "shape of switches": (file("x.npy", npy("(True, True)", values=b"0")), ["announces the shape (True, True)"]),
    "shape by a sum": (file("x.npy", npy("(10**12,)")), ["its header is not one that numpy.save writes"]),
    "shape by a call": (file("x.npy", npy("(__import__('os').getpid(),)")), ["its header is not one"]),
    "rows of nothing": (file("x.npy", npy("(1000000000000, 0)")), ["expected non-empty [N, D]"]),
    "values of nothing": (file("x.npy", npy("(1000000000000, 4)", "'|V0'")), ["expands to 20000000000000 bytes"]),
    "words of nothing": (file("x.npy", npy("(1000000000000, 4)", "'<U0'")), ["expands to 20000000000000 bytes"]),
    "objects": (file("x.npy", npy("(9, 9)", "'|O'", values=bytes(648))), ["pickled Python objects"]),
    "records with objects": (file("x.npy", npy("(9, 9)", "[('a', '|O')]", values=bytes(648))), ["pickled Python"]),
    "records": (
        file("x.npy", npy("(9, 2)", "[('a', 'u1')]", values=bytes(18))),
        ["holds values of type [('a', 'u1')]"],
    ),
    "dates": (file("x.npy", npy("(9, 2)", "'<M8[s]'", values=bytes(144))), ["holds values of type datetime64[s]"]),
    "complex numbers": (file("x.npy", npy("(9, 2)", "'<c8'", values=bytes(144))), ["holds values of type complex64"]),
    "unknown type": (file("x.npy", npy("(9, 2)", "'\\x1b[31m'")), ["its header is not one that numpy.save writes"]),
    "invalid escape": (file("x.npy", npy("(9, 2)", "'\\d'")), ["its header is not one that numpy.save writes"]),
    "order in words": (file("x.npy", npy("(9, 2)", order="'C'", values=bytes(18))), ["its header is not one"]),
    "header of 2 GB": (file("x.npy", header("{", version=2, length=2**31)), ["its header has 2147483648 bytes"]),
    "header of 2 GB that is there": (
        sparse("x.npy", header("{", version=2, length=2**31), 2**31),
        ["its header has 2147483648 bytes, and the limit is 1024"],
    ),
    "header in brackets": (file("x.npy", header("(" * 1000)), ["its header is not one that numpy.save writes"]),
    "header in minus signs": (
        file("x.npy", header("-" * 1000 + "1")),
        ["its header is not one that numpy.save writes"],
    ),
    "header of another version": (file("x.npy", header("{}", version=9)), ["its npy format is (9, 0)"]),
    "values cut off": (
        file("x.npy", npy("(30, 4)", values=bytes(119))),
        ["announces 120 bytes of values", "holds 119"],
    ),
    "values too many": (
        file("x.npy", npy("(30, 4)", values=bytes(121))),
        ["announces 120 bytes of values", "holds 121"],
    ),
    "larger than memory": (sparse("x.npy", npy(f"({2**40}, 1)"), 2**40), ["expands to", "--config.stream=true"]),
    "script": (file("x.npy", b"#!/bin/sh\nexit\n"), ["Expected one plain array written by numpy.save"]),
    "pickle": (file("x.npy", b"\x80\x04]."), ["Expected one plain array written by numpy.save"]),
    "integers beyond a byte": (file("x.npy", npy("(9, 2)", "'<i4'", values=b"\1\1\1\1" * 18)), ["Save it as float32"]),
    "archive of nothing": (archive(), ["holds the arrays []; expected x"]),
    "archive cut off": (file("x.npz", SMALL * 9), ["Expected plain arrays written by numpy.savez"]),
    "archive of 10^12 values": (archive(("x.npy", npy("(1000000000000,)"))), ["announces 1000000000000 bytes"]),
    "archive that says 4 GB": (archive(("x.npy", ROWS), patch=[(24, "<I", 2**32 - 2)]), ["more than its", "expand to"]),
    "archive that says 10 bytes": (archive(("x.npy", ROWS), patch=[(24, "<I", 10)]), ["Cannot read"]),
    "archive with a header of 64 MB": (
        archive(("x.npy", header("{" + " " * (1 << 26), version=2))),
        ["its header has 67108865 bytes, and the limit is 1024"],
    ),
    "archive of pickles": (archive(("x.npy", npy("(9,)", "'|O'", values=bytes(72)))), ["pickled Python objects"]),
    "archive with a path": (archive(("../../x.npy", ROWS)), ["holds the arrays ['../../x']; expected x"]),
    "archive with an absolute path": (archive(("/etc/x.npy", ROWS)), ["holds the arrays ['/etc/x']; expected x"]),
    "archive with two of a name": (archive(("x.npy", ROWS), ("x.npy", ROWS)), ["two arrays of one name"]),
    "archive with two of nearly a name": (archive(("x.npy", ROWS), ("x", ROWS)), ["two arrays of one name"]),
    "archive of an archive": (archive(("x.npz", SMALL)), ["Cannot read"]),
    "archive of many": (archive(*((f"{i}.npy", ROWS) for i in range(99))), ["holds 99 files, and the limit is 16"]),
    "archive by another method": (archive(("x.npy", ROWS), method=zipfile.ZIP_LZMA), ["compressed by a method"]),
    "archive with a password": (archive(("x.npy", ROWS), patch=[(8, "<H", 1)]), ["is encrypted"]),
    "archive with a name of control": (archive(("\x1b[31m.npy", ROWS)), ["holds the arrays ['\\x1b[31m']"]),
    "labels that are too few": (
        archive(("x.npy", ROWS), ("y.npy", npy("(3,)", values=bytes(3)))),
        ["has shape (3,); expected one label per example, (30,)"],
    ),
    "image of 10^10 pixels": (images(png(100_000, 100_000)), ["exceeds limit", "Expected an 8-bit image"]),
    "image of 10^18 pixels": (images(png(2**31 - 1, 2**31 - 1)), ["exceeds limit"]),
    "image of no pixel": (images(png(0, 0)), ["0.png", "Expected an 8-bit image"]),
    "bomb in the text": (images(png(extra=chunk(b"zTXt", b"a\0\0" + BOMB))), ["Decompressed"]),
    "bomb in the profile": (images(png(extra=chunk(b"iCCP", b"a\0\0" + BOMB))), ["Decompressed"]),
    "bomb in the other text": (images(png(extra=chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB))), ["arge"]),
    "16 bits of grey": (images(saved("PNG"), png(depth=16)), ["more than 8 bits per pixel"]),
    "16 bits of colour": (images(png(depth=16, color=2)), ["more than 8 bits per pixel"]),
    "16 bits with alpha": (images(png(depth=16, color=4)), ["more than 8 bits per pixel"]),
    "PNG cut off": (images(png(), png()[:30]), ["1.png", "Expected an 8-bit image"]),
    "PNG of another check sum": (images(png()[:30] + bytes(4) + png()[34:]), ["Expected an 8-bit image"]),
    "PNG without its pixels": (images(png(values=b"")), ["Expected an 8-bit image"]),
    "JPEG cut off": (images(saved("JPEG")[:-40]), ["Expected an 8-bit image"]),
    "TIFF": (images(saved("TIFF")[:-40]), ["0.png", "Expected an 8-bit image"]),
    "SVG": (images(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), ["Expected an 8-bit image"]),
    "PostScript": (images(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"), ["Expected an 8-bit image"]),
    "two sizes": (
        images(saved("PNG"), png(9, 8)),
        ["1.png", "has the size 8 x 9", "has 8 x 8. Give --config.image_size=64"],
    ),
    "link out of the folder": (images(png(), links=["../outside.png"]), ["is a link out of its folder; put a copy"]),
    "link to a device": (images(links=["/dev/zero"]), ["holds no file ending in"]),
    "link to itself": (images(links=["link0.png"]), ["link0.png", "Expected an 8-bit image"]),
    "link to nothing": (images(png(), links=["gone.png"]), ["link0.png", "Expected an 8-bit image"]),
    "pipe": (images(device="a.png"), ["holds no file ending in"]),
}

# Run directories: id -> (what is done to a sound one, parts of the line). Every digest is written anew.


def run_json(**changes):
    """run.json with other parts, its digest right."""

    def change(run_dir):
        run = json.loads((run_dir / "run.json").read_text())
        del run["sha256"]
        for name, value in changes.items():
            run[name] = run[name] | value if isinstance(value, dict) else value
        (run_dir / "run.json").write_text(json.dumps(run | {"sha256": digests.of_json(run)}))

    return change


def config(**changes):
    return run_json(config=changes)


def data(**changes):
    return run_json(data=changes)


def text(name, content):
    """Another content of a file of the latest checkpoint, or of the run."""

    def change(run_dir):
        path = latest(run_dir) / name if name != "run.json" else run_dir / name
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
        if name not in ("run.json", digests.NAME):
            digests.write(latest(run_dir))

    return change


def latest(run_dir):
    return max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name))


def linked(name, target):
    """A link in the place of a file or folder of the run."""

    def change(run_dir):
        path = run_dir / name
        if path.exists():
            path.rename(run_dir.parent / "moved")
        os.symlink(str(target).replace("OUTSIDE", str(run_dir.parent)), path)

    return change


def pipe(name):
    return lambda run_dir: ((run_dir / name).unlink(missing_ok=True), os.mkfifo(run_dir / name))


def array(name, **metadata):
    """Other metadata of an array in the latest checkpoint."""

    def change(run_dir):
        import tensorstore

        base = f"file://{latest(run_dir)}/params/"
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
        key = f"{name}/.zarray"
        store.write(key, json.dumps(json.loads(store.read(key).result().value) | metadata)).result()
        digests.write(latest(run_dir))

    return change


def grown(name, size):
    return lambda run_dir: os.truncate(run_dir / name, size)


RUNS = {
    "run.json of nothing": (text("run.json", ""), ["run.json is damaged", "Train again"]),
    "run.json of brackets": (text("run.json", "[" * 100_000), ["run.json is damaged (RecursionError"]),
    "run.json of a terabyte": (grown("run.json", 1 << 40), ["it has 1099511627776 bytes, and the limit is 4194304"]),
    "run.json of no text": (text("run.json", b"\xff\xfe"), ["run.json is damaged (UnicodeDecodeError"]),
    "run.json of a number": (text("run.json", "3"), ["run.json is damaged (TypeError"]),
    "format to come": (run_json(format=99), ["has format 99; this version reads 4. Update vae_jax"]),
    "format in words": (run_json(format="2"), ["run.json is damaged (TypeError"]),
    "example of 10^18 values": (data(shape=[10**9, 10**9]), ["examples of shape (1000000000, 1000000000); expected"]),
    "example of four axes": (data(shape=[8, 8, 1, 1]), ["examples of shape (8, 8, 1, 1)"]),
    "example of no axis": (data(shape=[]), ["examples of shape ()"]),
    "example of nothing": (data(shape=[8, 0, 1]), ["examples of shape (8, 0, 1)"]),
    "negative example": (data(shape=[-8, -8, 1]), ["examples of shape (-8, -8, 1)"]),
    "fractional example": (data(shape=[8.5, 8, 1]), ["run.json is damaged (TypeError"]),
    "other example": (data(shape=[9, 9, 1]), ["does not fit the model that this version builds"]),
    "classes in words": (data(classes=["ten"]), ["run.json is damaged (TypeError"]),
    "classes out of order": (data(classes=[3, 1]), ["the classes (3, 1); expected different whole numbers in rising"]),
    "range of no number": (data(range=[float("nan"), 1]), ["data from nan to 1.0; expected finite numbers"]),
    "range of words": (data(range=["a", "b"]), ["run.json is damaged (ValueError"]),
    "folder of data as a list": (data(data_dir=["/"]), ["fingerprint and data_dir are not text"]),
    "further data": (data(more=1), ["run.json is damaged (TypeError"]),
    "latent of 10^9": (config(latent_dim=10**9), ["the parameters take", "limit"]),
    "two layers of 10^7": (config(hidden_sizes=[10**7, 10**7]), ["the parameters take", "limit"]),
    "10^5 layers": (config(hidden_sizes=[1] * 10**5), ["hidden_sizes has 100000 layers; expected at most 100"]),
    "mixture of 10^12": (
        config(prior="mixture", prior_options={"num_components": 10**12}),
        ["the parameters take", "limit"],
    ),
    "couplings of 10^6": (config(prior="real_nvp", prior_options={"num_couplings": 10**6}), ["expected at most 100"]),
    "options of options": (config(prior_options={"a": {"b": [{"c": 1}]}}), ["has no option 'a'"]),
    "network by a path": (config(network="os.system"), ["Unknown network 'os.system'"]),
    "network that is a helper": (config(network="coupling"), ["Unknown network 'coupling'"]),
    "activation by a path": (config(activation="initializers.zeros"), ["Unknown activation 'initializers.zeros'"]),
    "likelihood that is none": (config(likelihood="__import__"), ["Unknown likelihood '__import__'"]),
    "field to come": (config(flow="realnvp"), ["a field 'flow' that this version does not know. Update vae_jax"]),
    "run.json out of the run": (linked("run.json", "OUTSIDE/moved"), ["run.json is a link out of the run directory"]),
    "checkpoints out of the run": (linked("checkpoints", "OUTSIDE/moved"), ["checkpoints is a link out of the run"]),
    "checkpoint out of the run": (linked("checkpoints/91", "/etc"), ["91 is a link out of the run directory"]),
    "picture out of the run": (linked("epoch-9", "OUTSIDE"), ["epoch-9 is a link out of the run directory"]),
    "log out of the run": (linked("metrics.jsonl", "/etc/passwd"), ["metrics.jsonl is a link out of the run"]),
    "pipe in the place of run.json": (pipe("run.json"), ["has no run.json; expected a run directory"]),
    "pipe in the place of the log": (pipe("metrics.jsonl"), ["metrics.jsonl is not a plain file"]),
    "digests of another folder": (text("SHA256SUMS", f"{'0' * 64}  ../../run.json\n"), []),
    "digests of an absolute path": (text("SHA256SUMS", f"{'0' * 64}  /etc/passwd\n"), []),
    "array of 10^12": (array("encoder.output.bias", shape=[BIG]), ["does not fit the model", "1000000000000"]),
    "array in chunks of 10^12": (array("encoder.output.bias", chunks=[BIG]), ["in chunks of (1000000000000,)"]),
    "array of another type": (array("encoder.output.bias", dtype="|O"), ["does not fit the model"]),
    "array of another compression": (array("encoder.output.bias", compressor={"id": "no"}), ["does not fit the model"]),
    "arrays of nothing": (text("params/_METADATA", "{}"), ["does not fit the model"]),
    "arrays of brackets": (text("params/_METADATA", "[" * 100_000), ["does not fit the model"]),
    "store of nothing": (text("params/manifest.ocdbt", b""), []),
    "store of zeros": (text("params/manifest.ocdbt", bytes(1000)), []),
}
# What train.py reads of a checkpoint besides, or `--checkpoint=best`.
PROGRESS = {
    "no progress": "{}",
    "progress in words": '{"loss": "low", "totals": {}}',
    "progress of brackets": "[" * 100_000,
    "totals in a list": '{"loss": 1, "totals": [1]}',
    "totals in words": '{"loss": 1, "totals": {"steps": "many"}}',
    "no JSON": "loss",
    "a megabyte": " " * (2 << 20),
}
