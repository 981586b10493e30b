"""A sweep compiles once, and each of its members is the run that train.py makes of its config."""

import contextlib
import io
import json
import shutil
import statistics
from dataclasses import replace
from functools import partial
from itertools import count
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, contents, without_pictures
from test_train import STILL, assert_bit_equal, assert_same_records, final_state

import vae_jax
from vae_jax import build
from vae_jax.__main__ import main
from vae_jax.cli import console, sweep
from vae_jax.config import Config
from vae_jax.data import inputs
from vae_jax.data.inputs import DataInfo
from vae_jax.errors import UserError
from vae_jax.run import checkpoints, ensemble, loop, metrics, runs

pytestmark = pytest.mark.robust

# Everything that a member could get wrong: warm-up, cosine, rising beta, an average of the weights, fresh binarisation.
# Smooth, because one rounding may decide whether a unit of ReLU is on, and what it decides is not small.
FIELDS = TINY | {
    "activation": "tanh",
    "batch_size": 75,
    "num_epochs": 10,
    "eval_epochs": 5,
    "schedule": "cosine",
    "warmup_steps": 20,
    "beta_warmup_steps": 50,
    "ema_decay": 0.9,
    "binarization": "dynamic",
}
del FIELDS["learning_rate"]
AXES = ["--seeds=0,1", "--betas=1,4", "--learning_rates=1e-2,3e-3"]
STEPS, STEPS_PER_EPOCH = 200, 20


def run(sweep_dir, *flags, **fields):
    """The command in this process; its stdout."""
    stdout = io.StringIO()
    settings = [f"--config.{name}={value}" for name, value in (FIELDS | fields).items()]
    with contextlib.redirect_stdout(stdout), jax.numpy_dtype_promotion("standard"):
        main(["sweep", str(sweep_dir), *flags, *settings])
    return stdout.getvalue()


def members_of(sweep_dir):
    return sorted(path for path in sweep_dir.iterdir() if path.is_dir())


def assert_same_sweep(sweep_dir, other):
    assert [path.name for path in members_of(sweep_dir)] == [path.name for path in members_of(other)]
    for run_dir in members_of(sweep_dir):
        assert_bit_equal(final_state(run_dir), final_state(other / run_dir.name))
        assert_same_records(run_dir, other / run_dir.name)
    assert (sweep_dir / "sweep.json").read_bytes() == (other / "sweep.json").read_bytes()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of 8 members, what it printed, and the jitted functions that it made. Leave it as it is."""
    made, make_train = [], ensemble.make_train
    sweep_dir = tmp_path_factory.mktemp("sweeps") / "sweep"
    with without_pictures() as patch:
        patch.setattr(ensemble, "make_train", lambda *args: made.append(make_train(*args)) or made[-1])
        stdout = run(sweep_dir, *AXES, "--num_samples=20")
    return SimpleNamespace(dir=sweep_dir, stdout=stdout, trains=made)


# members


def test_a_sweep_of_8_members_compiles_once(swept):
    (train,) = swept.trains
    assert len(members_of(swept.dir)) == 8
    assert train._cache_size() == 1


def test_each_member_is_the_run_of_its_config(swept, train, tmp_path, no_pictures):
    """What train.py computes of it alone, after 200 steps, for three of the members."""
    for run_dir in members_of(swept.dir)[::3]:
        member, _ = runs.read_run(run_dir)
        varied = {name: getattr(member, name) for name in ("seed", "beta", "learning_rate")}
        train(tmp_path / run_dir.name, **FIELDS | varied)
        (state, _), (alone, _) = final_state(run_dir), final_state(tmp_path / run_dir.name)
        assert state.step == alone.step == STEPS
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), state, alone)
        assert_same_records(run_dir, tmp_path / run_dir.name)


def test_members_differ(swept):
    weights = [checkpoints.load(run_dir).params["encoder"]["output"]["kernel"] for run_dir in members_of(swept.dir)]
    assert len({np.asarray(weight).tobytes() for weight in weights}) == 8


def test_members_by_vmap_are_those_in_turn(swept):
    """An accelerator runs them by `jax.vmap`, a CPU in turn; any number of steps a call is one compilation."""
    members = [runs.read_run(run_dir)[0] for run_dir in members_of(swept.dir)]
    _, data, examples, *_ = inputs.load(members[0], None)
    vae = build.make_vae(members[0], data)
    train = ensemble.make_train(vae, members[0], STEPS_PER_EPOCH, batched=True)
    with jax.numpy_dtype_promotion("standard"):
        states = ensemble.init_states(vae, members, STEPS_PER_EPOCH, examples.x)
        for num_steps in (7, 13, *[STEPS_PER_EPOCH] * 9):
            states, _ = train(states, ensemble.varied_of(members), examples, jnp.int32(num_steps))
    assert train._cache_size() == 1
    for i, run_dir in enumerate(members_of(swept.dir)):
        state, _ = final_state(run_dir)
        for name in ("params", "ema"):
            own = ensemble.take(getattr(states, name), i)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), own, getattr(state, name))


def test_a_member_is_an_ordinary_run(swept, vae, tmp_path):
    run_dir = swept.dir / "seed-1_beta-4_learning_rate-0.003"
    restored = vae_jax.load(run_dir)
    assert (restored.config.seed, restored.config.beta, restored.config.learning_rate) == (1, 4.0, 0.003)
    assert restored.step == STEPS
    vae("sample", run_dir, "--num=2", "--out", tmp_path / "x.png")
    with runs.open_run(run_dir, restored.config, restored.data):  # as train.py would
        pass
    with pytest.raises(UserError, match="beta"):
        runs.open_run(run_dir, replace(restored.config, beta=1.0), restored.data).__enter__()


def test_train_resumes_a_member(swept, train, tmp_path, no_pictures):
    """An epoch before its end, as the sweep itself does."""
    run_dir = shutil.copytree(swept.dir / "seed-0_beta-4_learning_rate-0.01", tmp_path / "run")
    shutil.rmtree(run_dir / "checkpoints" / str(STEPS))
    assert train(run_dir, **FIELDS | {"seed": 0, "beta": 4.0, "learning_rate": 0.01})["step"] == STEPS
    assert_same_records(run_dir, swept.dir / "seed-0_beta-4_learning_rate-0.01")


def test_only_what_varies_is_in_a_name():
    config = vae_jax.Config(seed=3)
    assert sweep.names([config]) == ["seed-3"]
    assert sweep.names([config, replace(config, beta=0.25)]) == ["seed-3_beta-1", "seed-3_beta-0.25"]
    rates = [replace(config, seed=seed, learning_rate=rate) for seed in (0, 1) for rate in (1e-3, 1e-5)]
    assert sweep.names(rates)[2:] == ["seed-1_learning_rate-0.001", "seed-1_learning_rate-1e-05"]


@pytest.mark.slow
def test_a_sweep_of_the_importance_weighted_bound_with_its_pictures(tmp_path):
    """It has no beta to trace."""
    fields = {"objective": "iwae", "num_samples": 2, "beta_warmup_steps": 0, "warmup_steps": 0, "num_epochs": 1}
    run(tmp_path, "--seeds=0,7", **fields)
    assert [path.name for path in members_of(tmp_path)] == ["seed-0", "seed-7"]
    pictures = {"reconstructions.png", "samples.png", "latents.png", "manifold.png", "curves.png"}
    for run_dir in members_of(tmp_path):
        assert {path.name for path in run_dir.iterdir()} == {"run.json", "metrics.jsonl", "checkpoints"} | pictures
    first, second = ({name: (run_dir / name).read_bytes() for name in pictures} for run_dir in members_of(tmp_path))
    assert all(first[name] != second[name] for name in pictures)


# the table


def test_the_table_is_of_the_members_last_evaluation(swept):
    result = json.loads((swept.dir / "sweep.json").read_text())
    assert result["split"] == "test" and len(result["members"]) == 8
    for row in result["table"]:
        runs = [f"seed-{seed}_beta-{row['beta']:g}_learning_rate-{row['learning_rate']:g}" for seed in (0, 1)]
        assert row["num_seeds"] == 2
        for name in ("loss", "elbo", "active_units"):
            values = [metrics.read(swept.dir / run)[-1][name] for run in runs]
            assert row[name] == pytest.approx(statistics.mean(values))
            assert row[f"{name}_se"] == pytest.approx(statistics.stdev(values) / 2**0.5)
    assert [(row["beta"], row["learning_rate"]) for row in result["table"]] == [
        (beta, rate) for beta in (1, 4) for rate in (0.01, 0.003)
    ]


def test_the_nll_of_a_member_is_that_of_the_command(swept, vae):
    members = {own["run_dir"]: own for own in json.loads((swept.dir / "sweep.json").read_text())["members"]}
    for name, own in list(members.items())[::7]:
        alone = json.loads(vae("evaluate", swept.dir / name, "--num_samples=20"))
        assert own["num_samples"] == 20
        for figure in ("nll", "nll_se", "active_units"):
            assert own[figure] == pytest.approx(alone[figure], rel=1e-5)


def test_the_table_is_printed_in_markdown(swept):
    head, line, *rows = swept.stdout.splitlines()
    figures = "loss (test) | elbo (test) | nll (test, K = 20) | active_units (test)"
    assert head == f"| beta | learning_rate | seeds | {figures} |"
    assert line == "| --- | --- | --- | --- | --- | --- | --- |"
    first = json.loads((swept.dir / "sweep.json").read_text())["table"][0]
    assert len(rows) == 4
    assert rows[0].startswith(f"| 1 | 0.01 | 2 | {first['loss']:.3f} ± {first['loss_se']:.3f} | ")


ROW = {"seed": 0, "beta": 1.0, "learning_rate": 0.1, "lost": False}


def test_one_seed_has_no_standard_error():
    (row,) = sweep.table([ROW | {"loss": 2.0, "elbo": -2.0}])
    assert row == {
        "beta": 1.0,
        "learning_rate": 0.1,
        "num_seeds": 1,
        "num_lost": 0,
        "loss": 2.0,
        "loss_se": None,
        "elbo": -2.0,
        "elbo_se": None,
    }
    assert sweep.markdown([row], "test", None).splitlines()[-1] == "| 1 | 0.1 | 1 | 2.000 ± - | -2.000 ± - |"


def test_the_table_is_of_the_seeds_that_are_not_lost():
    lost = {"lost": True, "loss": None, "elbo": None}
    figures = [ROW | {"loss": 2.0, "elbo": -1.0}, ROW | lost, ROW | {"loss": 4.0, "elbo": None}]
    rows = sweep.table([*figures, ROW | lost | {"beta": 4.0}])
    assert [(row["num_seeds"], row["num_lost"], row["loss"]) for row in rows] == [(2, 1, 3.0), (0, 1, None)]
    assert rows[0]["loss_se"] == pytest.approx(1.0) and np.isnan(rows[0]["elbo"])
    assert sweep.markdown(rows, "test", None).splitlines()[-2:] == [
        "| 1 | 0.1 | 2 (1 lost) | 3.000 ± 1.000 | nan ± nan |",
        "| 4 | 0.1 | 0 (1 lost) | lost | lost |",
    ]


# a member that diverges

LOST = {"optimizer": "sgd", "schedule": "constant", "warmup_steps": 0, "beta_warmup_steps": 0, "batch_size": 15}
LOST |= {"num_epochs": 2, "eval_epochs": 1}


def test_a_member_that_diverges_is_marked_and_the_others_finish(tmp_path, capsys):
    for _ in range(2):  # the second finds both at their end
        stdout = run(tmp_path, "--learning_rates=1e-3,1e30", "--num_samples=2", **LOST)
        assert "seed-0_learning_rate-1e+30 is lost: " in capsys.readouterr().err
        swept = json.loads((tmp_path / "sweep.json").read_text(), parse_constant=pytest.fail)
        fine, lost = swept["members"]
        assert (fine["lost"], lost["lost"]) == (False, True)
        assert fine["step"] == 200 and fine["nll"] < 60 and lost.get("loss") is None and lost.get("nll") is None
        assert [row["num_lost"] for row in swept["table"]] == [0, 1]
        assert stdout.splitlines()[-1] == "| 1 | 1e+30 | 0 (1 lost) | lost | lost | lost | lost |"
        before = contents(tmp_path)
    assert contents(tmp_path) == before
    assert (tmp_path / "seed-0_learning_rate-0.001" / "samples.png").exists()


def test_a_sweep_of_which_all_is_lost_ends_with_an_error(tmp_path, capsys):
    argv = ["sweep", str(tmp_path), "--learning_rates=1e25,1e30"]
    argv += [f"--config.{name}={value}" for name, value in (FIELDS | LOST).items()]
    with jax.numpy_dtype_promotion("standard"):
        assert console.run(main, argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith(f"error: No run of {tmp_path} has learned anything. seed-0_")
    assert [own["lost"] for own in json.loads((tmp_path / "sweep.json").read_text())["members"]] == [True, True]


# stopping and resuming


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A sweep of 3 members, an evaluation an epoch."""
    sweep_dir = tmp_path_factory.mktemp("unbroken") / "sweep"
    with without_pictures():
        run(sweep_dir, *SMALL, **EVERY)
    return sweep_dir


SMALL, EVERY = ["--seeds=0,1,2"], {"num_epochs": 3, "eval_epochs": 1, "learning_rate": 0.01, "warmup_steps": 10}


def test_a_kill_between_the_checkpoints_of_two_members_leaves_no_trace(unbroken, tmp_path, no_pictures, capsys):
    sweep_dir = shutil.copytree(unbroken, tmp_path / "sweep")
    for name in ("seed-1", "seed-2"):
        shutil.rmtree(sweep_dir / name / "checkpoints" / "60")
    (sweep_dir / "sweep.json").unlink()
    run(sweep_dir, *SMALL, **EVERY)
    assert "resumed at step 40 of 60" in capsys.readouterr().err
    assert_same_sweep(sweep_dir, unbroken)


@pytest.mark.slow
def test_stopped_inside_an_epoch_and_resumed_equals_unbroken(unbroken, tmp_path, no_pictures, monkeypatch, capsys):
    calls = count()

    @contextlib.contextmanager
    def stop_signals():
        yield lambda: 130 if next(calls) >= 27 else 0

    with monkeypatch.context() as patch:
        patch.setattr(console, "stop_signals", stop_signals)
        patch.setattr(loop, "time", SimpleNamespace(monotonic=count(1.0).__next__))  # one step per call
        argv = [f"--config.{name}={value}" for name, value in (FIELDS | EVERY).items()]
        with jax.numpy_dtype_promotion("standard"):
            assert console.run(main, ["sweep", str(tmp_path), *SMALL, *argv]) == 130
    assert "stopped at step 27 of 60; the same command resumes it" in capsys.readouterr().err
    assert {checkpoints.load(run_dir).step for run_dir in members_of(tmp_path)} == {27}
    run(tmp_path, *SMALL, **EVERY)
    assert_same_sweep(tmp_path, unbroken)


@pytest.mark.slow
def test_a_crash_far_from_an_evaluation_loses_little(unbroken, tmp_path, no_pictures, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "MAX_SECONDS", -1)
        patch.setattr(metrics, "append", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, *SMALL, **EVERY)
    assert {0 < checkpoints.load(run_dir).step < 20 for run_dir in members_of(tmp_path)} == {True}
    run(tmp_path, *SMALL, **EVERY)
    assert_same_sweep(tmp_path, unbroken)


def test_a_finished_sweep_stays_as_it_is(unbroken, no_pictures):
    before = contents(unbroken)
    run(unbroken, *SMALL, **EVERY)
    assert contents(unbroken) == before


def test_new_members_begin_and_finished_ones_are_kept(unbroken, tmp_path, no_pictures):
    sweep_dir = tmp_path / "sweep"
    run(sweep_dir, "--seeds=1", **EVERY)
    before = contents(sweep_dir / "seed-1")
    run(sweep_dir, *SMALL, **EVERY)
    assert contents(sweep_dir / "seed-1") == before
    assert_same_sweep(sweep_dir, unbroken)


def test_a_member_keeps_its_directory_when_more_of_the_sweep_varies(tmp_path):
    member, data = Config(seed=3, batch_size=4), DataInfo((5,), (), (0.0, 1.0), 40, 0, 10, "0123456789abcdef", None)
    with runs.open_run(tmp_path / "seed-3", member, data):
        pass
    members = [replace(member, num_epochs=99, beta=beta) for beta in (4.0, 1.0)]
    assert sweep._run_dirs(tmp_path, members) == [tmp_path / "seed-3_beta-4", tmp_path / "seed-3"]
    with runs.open_run(tmp_path / "seed-3_beta-4", members[0], data):
        pass
    assert sweep._run_dirs(tmp_path, members[:1]) == [tmp_path / "seed-3_beta-4"]
    assert sweep._run_dirs(tmp_path, [replace(member, latent_dim=3)]) == [tmp_path / "seed-3"], "which is refused"


def test_more_epochs_of_a_sweep_are_the_longer_sweep(tmp_path, no_pictures, capsys):
    fields = EVERY | {"schedule": "constant"}
    run(tmp_path / "unbroken", "--seeds=0,1", **fields)
    for num_epochs in (1, 3):
        run(tmp_path / "longer", "--seeds=0,1", **fields | {"num_epochs": num_epochs})
    assert "2 of 2 runs resumed at step 20 of 60" in capsys.readouterr().err
    assert_same_sweep(tmp_path / "longer", tmp_path / "unbroken")


def test_a_refusal_leaves_no_new_member(unbroken, tmp_path):
    """Of a member that holds only damaged checkpoints, which is seen after its directory is opened."""
    sweep_dir = shutil.copytree(unbroken, tmp_path / "sweep")
    for path in (sweep_dir / "seed-1" / "checkpoints").glob("*/SHA256SUMS"):
        path.unlink()
    before = contents(sweep_dir)
    with pytest.raises(UserError, match="seed-1 has only damaged checkpoints"):
        run(sweep_dir, "--seeds=7,0,1", **EVERY)
    assert contents(sweep_dir) == before and not (sweep_dir / "seed-7").exists()


def test_another_config_is_refused_and_leaves_nothing(unbroken):
    before = contents(unbroken)
    with pytest.raises(UserError, match="latent_dim"):
        run(unbroken, "--seeds=7,0", **EVERY, latent_dim=3)
    assert contents(unbroken) == before and not (unbroken / "seed-7").exists()


def test_more_epochs_of_a_cosine_schedule_need_another_folder_of_the_sweep(unbroken):
    before = contents(unbroken)
    with pytest.raises(UserError, match=r"--config.init_from=\S+ too, and with another SWEEP_DIR\.$"):
        run(unbroken, *SMALL, **EVERY | {"num_epochs": 9})
    assert contents(unbroken) == before


@pytest.mark.slow
def test_restart_moves_every_member_aside(unbroken, tmp_path, no_pictures):
    sweep_dir = shutil.copytree(unbroken, tmp_path / "sweep")
    run(sweep_dir, *SMALL, "--restart", **EVERY | {"num_epochs": 1})
    assert contents(sweep_dir / "seed-2.1") == contents(unbroken / "seed-2")
    assert checkpoints.load(sweep_dir / "seed-2").step == STEPS_PER_EPOCH


def test_a_damaged_member_takes_the_sweep_back_to_the_step_before(unbroken, tmp_path, no_pictures, capsys):
    sweep_dir = shutil.copytree(unbroken, tmp_path / "sweep")
    path = sweep_dir / "seed-1" / "checkpoints" / "60" / "state" / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[::-1])
    run(sweep_dir, *SMALL, **EVERY)
    said = capsys.readouterr().err
    assert f"{path.parents[1]} is damaged (state/manifest.ocdbt differs from its digest): set aside" in said
    assert "resumed at step 40 of 60" in said
    assert_same_sweep(sweep_dir, unbroken)


def test_members_begin_with_the_weights_of_another_run(unbroken, tmp_path, no_pictures):
    still = STILL | {"num_epochs": 1, "init_from": unbroken / "seed-1"}
    run(tmp_path, "--seeds=0,7", **EVERY | still)
    first = checkpoints.load(unbroken / "seed-1").params
    for name in ("seed-0", "seed-7"):
        assert_bit_equal(checkpoints.load(tmp_path / name).params, first)


def test_a_member_that_another_process_trains_is_refused(unbroken, tmp_path):
    sweep_dir = shutil.copytree(unbroken, tmp_path / "sweep")
    before = contents(sweep_dir)
    config, data = runs.read_run(sweep_dir / "seed-1")
    with (
        runs.open_run(sweep_dir / "seed-1", config, data),
        pytest.raises(UserError, match=r"seed-1 is in use: another process trains there"),
    ):
        run(sweep_dir, "--seeds=1,0,7", **EVERY)
    assert contents(sweep_dir) == before and not (sweep_dir / "seed-7").exists()
