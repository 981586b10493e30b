"""The three pages are true: their Python runs, their commands and flags are understood, what they name is there."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import jax
import pytest

from vae_jax.__main__ import parse
from vae_jax.cli import console
from vae_jax.run import metrics

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "configs/README.md", "tests/benchmarks/README.md")
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What stands between backticks outside of blocks, by page.
SPANS = {page: re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)) for page, text in TEXTS.items()}
SOURCES = [path.read_text() for folder in ("vae_jax", "tests") for path in (ROOT / folder).rglob("*.py")]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def blocks(page, *languages):
    return [code for language, code in BLOCK.findall(TEXTS[page]) if language in languages]


def commands(page):
    """Those in the text, and those in blocks: a line each, in `console` after a dollar, joined by &&."""
    lines = [line for code in blocks(page, "sh") for line in code.splitlines()]
    lines += re.findall(r"^\$ (.*)$", "".join(blocks(page, "console")), re.MULTILINE)
    lines += [span for span in SPANS[page] if re.match(r"(taskset -c \d )?(python|vae-jax) .", span)]
    return [command for line in lines for command in line.split(" && ")]


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
FLAGS = list(dict.fromkeys(span for page in PAGES for span in SPANS[page] if span.startswith("--")))


@pytest.fixture
def beside_a_run(tmp_path, monkeypatch, digits_run):
    """A current directory with a trained run in checkpoints/digits."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "digits").symlink_to(digits_run)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python(page, beside_a_run):
    """The blocks of a page continue each other."""
    names = {}
    for block in blocks(page, "python"):
        with jax.numpy_dtype_promotion("standard"):
            exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(re.sub(r"^taskset -c \d ", "", command).replace("vae-jax", "python -m vae_jax"))
    match words[1:]:
        case ["train.py", "--help"]:
            with pytest.raises(SystemExit):
                console.parse_train(["--help"])
        case ["train.py", *argv]:
            assert console.parse_train(argv)
        case ["-m", "vae_jax", *argv]:
            assert parse(argv).command != "sweep" or len(parse(argv).members) in (3, 6)
        case ["-m", "pip", "install", "-e", what]:
            assert what == "." or what.removeprefix(".[").removesuffix("]") in EXTRAS
        case ["-m", "pytest", *_]:
            pass  # this very command
        case [script, *argv]:
            assert_flags_exist(argv, [(ROOT / script).read_text(), (ROOT / "tests/benchmarks/measure.py").read_text()])
        case _:
            pytest.fail(f"What is this? {command}")


def assert_flags_exist(argv, sources):
    for flag in re.findall(r"--\w+", " ".join(argv)):
        assert any(f'"{flag}"' in source for source in sources), f"nothing has a flag {flag}"


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_are_understood(flags, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "--config." in flags:
        assert console.parse_train(shlex.split(flags))
    else:
        assert_flags_exist([flags], SOURCES)


def test_the_commands_print_what_the_readme_shows(beside_a_run, digits_run, vae):
    """But for the numbers, and for what dots stand for."""
    (shown,) = blocks("README.md", "console")
    trained, evaluated = re.findall(r"^\{.*\}$", shown, re.MULTILINE)
    record = metrics.read(digits_run)[-1]
    assert set(keys(trained)) <= {"run_dir", *record}
    summary = vae("evaluate", "checkpoints/digits", "--limit=9", "--num_samples=2")
    assert set(keys(evaluated)) <= set(json.loads(summary))
    first, last = re.findall(r"^(epoch.*?) +\.\.\.$", shown, re.MULTILINE)
    described = without_numbers(metrics.describe(record, 1.0, 1.0))
    assert described.startswith(without_numbers(first)) and described.startswith(without_numbers(last))


def keys(shown):
    return re.findall(r'"(\w+)":', shown)


def without_numbers(line):
    return re.sub(r"-?\d[\d.]*", "0", line)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    """Files in backticks, wherever they are looked for; links, with the headings that they point to."""
    here = (ROOT / page).parent
    for name in SPANS[page]:
        if name.startswith(".["):
            assert name[2:-1] in EXTRAS
        if re.fullmatch(r"[\w/.]+\.(py|jsonl)|configs/\w+/", name):
            assert any((folder / name).exists() for folder in (ROOT, here, ROOT / "vae_jax")), name
    for target in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", TEXTS[page]):
        path, _, anchor = "".join(target).partition("#")
        assert (here / path).is_file(), path
        headings = re.findall(r"^#+ (.*)$", (here / path).read_text() if anchor else "", re.MULTILINE)
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_the_map_of_the_package_is_of_files_that_exist():
    section = TEXTS["README.md"].partition("## The package")[2].partition("\n## ")[0]
    there = {path.stem for path in (ROOT / "vae_jax").rglob("*.py")}
    names = set(re.findall(r"`([a-z_]+)(?:\.py)?`", section))
    assert {"core", "objectives", "update"} < names <= there


def test_every_recipe_is_in_the_index_which_says_whether_it_was_run():
    for recipe in (ROOT / "configs").rglob("*.py"):
        name = f"`{recipe.relative_to(ROOT / 'configs')}`"
        row = next((line for line in TEXTS["configs/README.md"].splitlines() if f"| {name}" in line), "")
        assert row, f"configs/README.md does not name {name}"
        first_line = recipe.read_text().splitlines()[0].lower()
        assert ("never run to its end" in row) == ("never run to its end" in first_line), name


def test_every_benchmark_is_on_its_page():
    for script in (*(ROOT / "tests/benchmarks").glob("*.py"), ROOT / "tests/faults.py"):
        if "__main__" in script.read_text():
            assert script.name in TEXTS["tests/benchmarks/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_plain_english(page):
    assert not re.findall(r".*\bis no .*", TEXTS[page])
    assert not re.findall(r".*\b(?:nats|images|samples|units|numbers|steps) an? .*", TEXTS[page])


def test_the_readme_is_short_and_begins_with_code():
    assert len((ROOT / "README.md").read_bytes()) <= 8000
    assert "jax.value_and_grad" in "".join(TEXTS["README.md"].splitlines()[:50])


def help_texts(capsys):
    """What --help prints, of train.py and of every command."""
    pictures = ("sample", "reconstruct", "interpolate", "traverse", "manifold")
    commands = ("train", *pictures, "encode", "export", "evaluate", "score", "report", "explore", "sweep")
    for parse_flags, argv in ((console.parse_train, []), *((parse, [name]) for name in commands)):
        with pytest.raises(SystemExit):
            parse_flags([*argv, "--help"])
        yield " ".join(capsys.readouterr().out.split())


def test_help_is_plain_english(capsys):
    for text in help_texts(capsys):
        assert not re.search(r"\b(is|are) no\b|\b(nats|examples|samples|points|numbers) an? \w", text)
