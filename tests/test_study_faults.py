"""What a study meets: odd settings, full disks, diverging seeds, clusters and commands misused."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock

from seqrec_lib import __main__ as command_line
from seqrec_lib.__main__ import main
from seqrec_lib.study import comparison, measuring, progress, records, runner, tables
from seqrec_lib.study.comparison import chosen, gains
from seqrec_lib.study.grid import Run, load_grid
from seqrec_lib.study.progress import Expected
from seqrec_lib.study.records import Store, results
from seqrec_lib.study.runner import run_grid
from seqrec_lib.study.scratch import Scratch, origin_of, went_on
from seqrec_lib.training import TrainingDiverged
from seqrec_lib.training.checkpoints import load_checkpoint, save_checkpoint
from study_helpers import runs_of

SMALL = {
    "seeds": [0, 1, 2],
    "config": {"max_len": 8, "dim": 8, "epochs": 2},
    "datasets": {"world-markov": {"data": {"num_users": 60, "num_items": 20, "length": 8}}},
    "runs": [{"datasets": ["world-markov"], "attentions": ["softmax"]}],
}


def grid(seeds=(0, 1, 2), **config):
    return load_grid({**SMALL, "seeds": list(seeds), "config": {**SMALL["config"], **config}})


def do(folder, runs, **options):
    options = {"say": lambda text: None, **options}
    return run_grid(runs, results=folder / "results", scratch=folder / "runs", **options)


def call(*words, code=0):
    found = CliRunner().invoke(main, ["study", *map(str, words)])
    assert found.exit_code == code, found.output
    return found.output


# ---- records and their folders -------------------------------------------------------------


def test_a_setting_of_many_digits_is_the_setting_of_its_record(tmp_path):
    runs = grid([0], lr=10**-3.5)
    assert do(tmp_path, runs).done == runs
    again = do(tmp_path, runs)
    assert again.skipped == runs and not again.done
    assert Store(tmp_path / "results").read(runs[0])["config"]["lr"] == 10**-3.5


def test_a_damaged_record_is_named_with_the_command_for_its_folder(tmp_path, monkeypatch):
    runs, folder = load_grid("quick"), tmp_path / "my results"
    path = Store(folder).path(runs[0])
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.warns(UserWarning, match=r"study run --results '.*my results'` \(with the --grid"):
        assert results(folder).empty
    with pytest.warns(UserWarning, match="is left out"):
        said = call("status", "--grid", "quick", "--results", folder, "--scratch", tmp_path)
    assert f"{runs[0]}: damaged, {path}\n" in said and "1 damaged" in said
    monkeypatch.setattr(records, "results_dir", lambda: folder)
    with pytest.warns(UserWarning, match="study run` "):
        assert results().empty


@pytest.mark.parametrize("name", ["results", "runs"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, name
):
    (tmp_path / name).write_text("a file where a folder should be")
    monkeypatch.setattr(runner, "run_job", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(OSError, match=name):
        do(tmp_path, grid())
    words = ["run", "--results", tmp_path / "results", "--scratch", tmp_path / "runs"]
    said = call(*words, "--grid", "quick", code=1)
    assert said.startswith("Error: ") and name in said


def test_a_full_disk_ends_no_study_without_a_report(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    monkeypatch.setattr(type(tmp_path), "write_text", full)
    report = do(tmp_path, grid())
    assert len(report.failed) == 3
    assert all("No space left" in why for why in report.failed.values())


@pytest.mark.skipif(sys.platform == "win32", reason="sets a limit that Windows has not")
def test_a_checkpoint_that_finds_no_room_says_so_and_leaves_the_last_one(tmp_path):
    import resource

    path, before = tmp_path / "run.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    save_checkpoint(path, {}, x=torch.zeros(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(path, {}, x=torch.zeros(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(path, {})["x"].shape == (1,)
    assert [each.name for each in tmp_path.iterdir()] == ["run.pt"]


def test_a_run_that_was_thought_to_cost_nothing_ends_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr(
        runner, "estimate", lambda runs, *_: dict.fromkeys(runs, Expected(0.0, 1.0))
    )
    assert len(do(tmp_path, grid()).done) == 3


def test_the_time_left_is_that_of_the_same_split():
    two = {
        **SMALL,
        "runs": [{**SMALL["runs"][0], "splits": ["leave-one-out", "leave-one-out-refit"]}],
    }
    done, todo = (load_grid({**two, "seeds": [seed]}) for seed in (0, 1))
    took = {"leave-one-out": 100.0, "leave-one-out-refit": 10.0}
    records = [{**run.axes, "config": dict(run.config), "device": "cpu: x", "epochs": 2,
                "seconds": took[run.split]} for run in done]  # fmt: skip
    cost = progress.estimate(todo, records, "cpu")
    assert {run.split: cost[run].seconds for run in todo} == pytest.approx(took)


# ---- several seeds at once -------------------------------------------------------------------


def test_a_seed_that_diverges_fails_alone(tmp_path, monkeypatch):
    together = measuring.fit_seeds
    monkeypatch.setattr(measuring, "fit_seeds", diverges := Diverges(together, 1))
    monkeypatch.setattr(measuring, "fit", Diverges(measuring.fit, 1))
    report = do(tmp_path, runs := grid(), seeds_at_once=True)
    assert diverges.called
    assert [run.seed for run in report.done] == [0, 2]
    assert [run.seed for run in report.failed] == [1]
    assert "TrainingDiverged" in report.failed[runs[1]]
    assert not list((tmp_path / "runs").glob("*.seeds*.pt"))  # it would diverge there again


def test_what_is_set_aside_is_never_written_over(tmp_path):
    (run,), (other,) = grid([0]), grid([0], epochs=1)
    store = Store(tmp_path / "results")
    do(tmp_path, [run])
    first = store.path(run).read_text()
    said = []
    for each in (other, run):  # outdated twice
        do(tmp_path, [each], say=said.append)
    folder, name = store.path(run).parent, store.path(run).name
    assert (folder / f"{name}.outdated").read_text() == first
    assert json.loads((folder / f"{name}.outdated-2").read_text())["epochs"] == 1
    assert any("will be set aside: epochs 2, now 1" in line for line in said)
    for number in range(2):
        store.path(run).write_text(f"{{ {number}")
        do(tmp_path, [run])
    assert (folder / f"{name}.damaged").read_text() == "{ 0"
    assert (folder / f"{name}.damaged-2").read_text() == "{ 1"
    assert len(list(store)) == 1 and store.state(run) == "done"
    table = SMALL | {"config": {**SMALL["config"], "epochs": 1}}
    with (tmp_path / "other.toml").open("w") as file:
        file.write("seeds = [0]\n[config]\nmax_len = 8\ndim = 8\nepochs = 1\n")
        file.write("[datasets.world-markov]\ndata = {num_users = 60, num_items = 20, length = 8}\n")
        file.write("[[runs]]\ndatasets = ['world-markov']\n")
    assert load_grid(tmp_path / "other.toml") == load_grid({**table, "seeds": [0]})
    words = ["--grid", tmp_path / "other.toml", "--results", tmp_path / "results", "--dry-run"]
    assert "(its record will be set aside: epochs 2, now 1)" in call("run", *words)


def test_studies_that_share_a_scratch_keep_their_checkpoints_apart(tmp_path):
    (cut,), (other,) = grid([0]), grid([0], dim=12)
    assert cut.key == other.key
    checkpoint = Scratch(tmp_path / "runs").checkpoint((cut,))
    checkpoint.parent.mkdir()
    went_on(checkpoint, cut, "of some data", {"device": "cpu"})
    checkpoint.write_text("some epochs")
    do(tmp_path, [other])
    assert checkpoint.read_text() == "some epochs" and origin_of(checkpoint).exists()
    odd = checkpoint.with_name(checkpoint.name.replace(".seed0.", ".seeds-of-apples.seed0."))
    odd.write_text("a variant of that name")
    assert not list(Scratch(tmp_path / "runs").begun_at_once(cut))


def test_seeds_that_failed_together_are_not_put_together_again(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "fit_seeds", Diverges(measuring.fit_seeds, 1))
    monkeypatch.setattr(measuring, "fit", Diverges(measuring.fit, 1))
    runs, scratch = grid(), Scratch(tmp_path / "runs")
    do(tmp_path, runs, seeds_at_once=True)
    seeds = [[run.seed for run in job] for job in scratch.jobs(runs)]
    assert seeds == [[0, 2], [1]]  # the first and the last are done, and free again
    alone = scratch.checkpoint((runs[0],))
    went_on(alone, runs[0], "of these data", {})
    alone.write_text("some epochs")
    assert [[run.seed for run in job] for job in scratch.jobs(runs)] == [[2], [0], [1]]


def test_a_done_run_leaves_no_checkpoint_even_if_its_command_was_killed(tmp_path):
    runs = grid([0])
    do(tmp_path, runs)
    checkpoint = Scratch(tmp_path / "runs").checkpoint(runs)
    for path in (checkpoint, origin_of(checkpoint)):
        path.write_text("{}")
    assert do(tmp_path, runs).skipped == runs
    assert not checkpoint.exists() and not origin_of(checkpoint).exists()


def test_a_run_that_is_there_twice_is_done_once_and_may_not_contradict_itself(tmp_path):
    runs = grid([0, 1])
    report = do(tmp_path, runs + runs, seeds_at_once=True)
    assert report.done == runs
    with pytest.raises(ValueError, match="seed0 is there twice, with different configurations"):
        do(tmp_path, runs + grid([0], dim=12))


def test_a_record_tells_everything_it_was_made_with_from_the_beginning(tmp_path):
    (run,), checkpoint = grid([0]), tmp_path / "some.pt"
    now = {"threads": 1, "torch": "2.13.0"}
    assert went_on(checkpoint, run, "data", now) == now
    checkpoint.write_text("some epochs")
    assert went_on(checkpoint, run, "data", now) == now
    found = went_on(checkpoint, run, "data", {"threads": 2, "torch": "2.13.0"})
    assert found == {"threads": "1, then 2", "torch": "2.13.0"}
    assert went_on(checkpoint, run, "other data", now) == now  # begun anew


def test_the_time_left_is_less_what_is_done(tmp_path):
    (run,) = grid([0])
    expected = {run: Expected(60.0, 4.0)}
    assert progress.remaining(expected, Scratch(tmp_path)) == {run: 60.0}
    for epoch, left in ((1, 45.0), (9, 0.0)):
        Scratch(tmp_path).marker(run).write_text(json.dumps({"epoch": epoch}))
        assert progress.remaining(expected, Scratch(tmp_path)) == {run: left}
    Scratch(tmp_path).marker(run).write_text("")  # no epoch yet
    assert progress.remaining(expected, Scratch(tmp_path)) == {run: 60.0}


def test_a_failure_that_found_no_room_for_its_words_does_not_end_status(tmp_path):
    run = load_grid("quick")[0]
    Scratch(tmp_path).traceback(run).touch()
    words = ["--grid", "quick", "--results", tmp_path, "--scratch", tmp_path]
    assert f"{run}: failed, and there was no room to say why" in call("status", *words)


@pytest.mark.parametrize("model, setting", [
    ("popularity", {"dropout": 0.9}), ("sasrec", {"regularization": 0.5}),
])  # fmt: skip
def test_a_setting_that_changes_nothing_is_refused(model, setting):
    block = {"datasets": ["world-markov"], "models": [model], **setting}
    with pytest.raises(ValueError, match=f"{[*setting][0]} changes nothing in {model}"):
        load_grid({"runs": [block]})


class Diverges:
    """Training that diverges where one of its models has this seed."""

    def __init__(self, fit, seed):
        self.fit, self.seed, self.called = fit, seed, False
        self.__signature__ = inspect.signature(fit)

    def __call__(self, *args, seed=None, seeds=(), **options):
        self.called = True
        if self.seed in (seed, *seeds):
            if seeds:  # what it had reached before
                Path(options["checkpoint"]).write_text("some epochs")
            raise TrainingDiverged(f"seed {self.seed}: the loss is nan")
        own = {"seeds": seeds} if seeds else {"seed": seed}
        return self.fit(*args, **own, **options)


def test_when_time_is_up_what_was_measured_is_kept(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        runner, "time", SimpleNamespace(time=lambda: clock.now, perf_counter=lambda: clock.now)
    )
    measure = measuring._measure

    def slow(*args):
        clock.now += 40
        return measure(*args)

    monkeypatch.setattr(measuring, "_measure", slow)
    store, runs = Store(tmp_path / "results"), grid()
    report = do(tmp_path, runs, seeds_at_once=True, time_limit=1)
    assert (len(report.done), len(report.cut)) == (2, 1)
    assert [store.state(run) for run in runs] == ["done", "done", "missing"]
    clock.now = 1e6
    measured = []
    monkeypatch.setattr(
        measuring, "_measure", lambda run, *args: measured.append(run) or measure(run, *args)
    )
    assert do(tmp_path, runs, seeds_at_once=True, time_limit=1).done == runs[2:]
    assert measured == runs[2:] and store.read(runs[2])["seeds_at_once"] == 3


# ---- clusters ----------------------------------------------------------------------------------


def test_a_cluster_whose_workers_have_several_threads_is_refused(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.Client(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ),
        pytest.raises(ValueError, match="1 of 1 Dask workers have several threads.*--nthreads 1"),
    ):
        do(tmp_path, grid(), backend="dask")


# ---- tables ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    two = {
        **SMALL,
        "runs": [{**SMALL["runs"][0], "splits": ["leave-one-out", "leave-one-out-refit"]}],
    }
    assert not do(folder, load_grid(two)).failed
    return folder / "results"


def test_curves_of_two_splits_are_two_curves(small):
    table = results(small)
    assert len(tables.histories(table)) == len(table) == 6
    one = tables.histories(table[table["split"] == "leave-one-out"])
    assert "world-markov sasrec softmax, seed 0" in one


def test_two_origin_of_a_baseline_are_two_rows():
    names = {tables.label(Run("beauty", model="item-knn", variant=v)) for v in ("main", "wide")}
    assert names == {"item-knn", "item-knn (wide)"}


def test_the_command_for_what_is_missing_names_its_folder_and_can_be_pasted(tmp_path):
    root = tmp_path / "my results"
    (row, *_) = tables.missing("quick", root).to_dict("records")
    words = subprocess.run(
        [sys.executable, "-c", "import shlex, sys; print(*shlex.split(sys.stdin.read()), sep='|')"],
        input=row["command"], capture_output=True, text=True, check=True,
    ).stdout.strip().split("|")  # fmt: skip
    assert words[words.index("--results") + 1] == os.fspath(root)
    assert "--results" not in tables.missing("quick")["command"].to_string()


@pytest.mark.parametrize("compare", [
    lambda t: tables.effects(t, margin=0),
    lambda t: comparison.paired(t, "test NDCG@10", margin=0),
    lambda t: gains(margin=0),
])  # fmt: skip
def test_a_margin_of_nothing_is_no_lack_of_spread(small, compare):
    with pytest.raises(ValueError, match="margin must be positive, got 0"):
        compare(results(small))


@pytest.mark.parametrize("compare", [
    lambda t: tables.effects(t, level=95),
    lambda t: tables.regimes(t, level=95),
    lambda t: tables.summarize(t, "test NDCG@10", level=95),
    lambda t: comparison.paired(t, "test NDCG@10", margin=0.1, level=95),
    lambda t: gains(level=95),
    lambda t: comparison.detectable(1, 5, level=95),
])  # fmt: skip
def test_a_level_that_is_no_share_is_no_lack_of_spread(small, compare):
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        compare(results(small))


def test_nothing_reaches_no_goal(tmp_path):
    assert comparison.epochs_to(results(tmp_path)).empty


def test_a_seed_may_be_written_as_text(small, tmp_path):
    assert len(results(small, seed="0")) == len(results(small, seed=0)) > 0
    settings = len(tables.missing(root=tmp_path, seed=0))
    for seed in ("0", np.int64(0)):
        assert len(tables.missing(root=tmp_path, seed=seed)) == settings > 0


def test_the_command_for_what_is_missing_does_that_and_nothing_else(tmp_path):
    (row,) = gains(
        ("awrsr-additive", "dropout-0.3"), ("softmax", "main"), root=tmp_path, dataset="beauty"
    ).to_dict("records")
    found = [(r.attention, r.variant, r.seed) for r in runs_of(row["missing"], "main")]
    sides = {("awrsr-additive", "dropout-0.3"), ("softmax", "main")}
    assert len(found) == len({*found}) == 10 and {each[:2] for each in found} == sides


def test_a_grid_that_is_no_file_is_not_taken_for_main(tmp_path):
    grid = {"runs": [{"datasets": ["lastfm"], "attentions": ["softmax"]}], "seeds": [0]}
    (command,) = tables.missing(grid, tmp_path)["command"]
    assert "--grid GRID.toml" in command


def test_what_another_process_is_at_is_not_tidied_away(tmp_path):
    (run,) = grid([0])
    do(tmp_path, [run])
    scratch = Scratch(tmp_path / "runs")
    for state in ("done", "damaged"):
        scratch.checkpoint((run,)).touch()
        if state == "damaged":
            Store(tmp_path / "results").path(run).write_text("half a rec")
        with FileLock(scratch.lock(run)):
            do(tmp_path, [run])
        assert Store(tmp_path / "results").state(run) == state
        assert scratch.checkpoint((run,)).exists()
    scratch.checkpoint((run,)).unlink()
    assert do(tmp_path, [run]).done == [run]


def test_pairs_of_variants_are_those_of_one_weighting(small):
    table = results(small, split="leave-one-out")
    other = table.assign(variant="other", score=1.0)
    both = pd.concat([table.assign(score=2.0), other])
    both = pd.concat([both, both.assign(attention="uniform")])
    found = comparison.paired(both, "score", against="main", by="variant", margin=0.1)
    assert set(found["attention"]) == {"softmax", "uniform"} and (found["difference"] == -1).all()


def test_what_has_no_dropout_chooses_none():
    assert set(chosen(["main"], dataset="beauty").index.get_level_values("model")) == {
        "sasrec", "stosa",
    }  # fmt: skip


@pytest.mark.parametrize("only, words", [
    ({"dataset": "beuty"}, "no run has dataset=beuty"), ({"datset": "beauty"}, "runs have no"),
])  # fmt: skip
def test_a_misspelt_name_is_no_empty_table(only, words):
    for table in (gains, tables.benchmark, tables.missing):
        with pytest.raises(ValueError, match=words):
            table(**only)


# ---- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize("words, said", [
    (["run", "--device", "nowhere", "--dry-run"], "nowhere"),
    (["run", "--time-limit", "-3", "--dry-run"], "x>=0"),
    (["run", "--only", "dataset=lastfm", "seed=0", "loss=ce"], "of its own: --only seed=0"),
    (["table", "--only", "dataset=lastfm", "seed=0"], "of its own: --only seed=0"),
    (["status", "seed=0"], "of its own: --only seed=0"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_words(words, said):
    found = CliRunner().invoke(main, ["study", *words])
    assert found.exit_code in (1, 2) and said in found.output
    assert "Traceback" not in found.output and isinstance(found.exception, SystemExit)


def test_a_figure_that_cannot_be_written_is_said_in_words(small, tmp_path):
    (tmp_path / "grid.toml").write_text(
        "seeds = [0]\nconfig = {max_len = 8, dim = 8, epochs = 2}\n"
        "[datasets.world-markov]\ndata = {num_users = 60, num_items = 20, length = 8}\n"
        '[[runs]]\ndatasets = ["world-markov"]\nattentions = ["softmax"]\n'
    )
    here = ["plot", "curves", "--grid", tmp_path / "grid.toml", "--results", small, "--output"]
    assert "'xyz' is not supported" in call(*here, tmp_path / "x.xyz", code=1)
    assert "nodir" in call(*here, tmp_path / "nodir" / "x.svg", code=1)


@pytest.mark.parametrize("command", ["status", "table benchmark", "table effects", "plot curves"])
def test_a_folder_of_records_that_is_a_file_is_said_in_words(command, tmp_path):
    (tmp_path / "file").write_text("")
    said = call(*command.split(), "--grid", "quick", "--results", tmp_path / "file", code=1)
    assert said.startswith("Error: ") and "file" in said


def test_a_figure_of_nothing_is_not_written(small, tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "_records", lambda *_: table)
    table, here = results(small, split="leave-one-out"), ("--output", tmp_path / "x.svg")
    assert "two seeds or more of both" in call("plot", "regimes", *here, code=1)
    table = table.assign(curve=[{}] * len(table))  # as for what counts pairs
    assert "no curve" in call("plot", "curves", *here, code=1)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_is_as_long_as_its_longest_run_and_claims_nothing_of_a_cluster(
    tmp_path, monkeypatch
):
    cost = {run: Expected(3600.0 * (run.model == "sasrec"), 1.0) for run in load_grid("quick")}
    monkeypatch.setattr(command_line, "estimate", lambda runs, *_: {run: cost[run] for run in runs})
    here = ("run", "--dry-run", "--grid", "quick", "--results", tmp_path, "--jobs", "500")
    assert "about 60 min with 500 at a time" in call(*here)
    said = call(*here, "--scheduler", "tcp://nowhere:1")
    assert "at a time" not in said and "h of computing" in said


def test_the_exit_code_says_whether_the_same_line_has_more_to_do(tmp_path, monkeypatch):
    done, busy, failed = grid()
    for ends, code in (
        ({"done": [done]}, 0),
        ({"done": [done], "cut": [busy]}, 3),
        ({"done": [done], "busy": [busy]}, 3),
        ({"cut": [busy], "failed": {failed: "why"}}, 1),
    ):
        monkeypatch.setattr(command_line, "run_grid", lambda *_, e=ends, **__: runner.Report(**e))
        said = call("run", "--grid", "quick", "--results", tmp_path, code=code)
        assert ("nothing is left" in said) == (code == 0)


def test_status_tells_what_failed_and_what_is_running_from_what_was_cut(tmp_path):
    runs = load_grid("quick")
    baseline = next(run for run in runs if run.model == "popularity")
    failed, live, killed, early = [run for run in runs if run.model == "sasrec"][:4]
    Scratch(tmp_path).traceback(failed).write_text("Traceback ...\nMemoryError: too much\n")
    for run in (live, killed):
        Scratch(tmp_path).marker(run).write_text('{"epoch": 3, "loss": 0.5}')
    Scratch(tmp_path).marker(baseline).write_text("{}")
    Scratch(tmp_path).marker(early).write_text("")  # killed while it was written
    Scratch(tmp_path).lock(killed).touch()
    here = ("status", "--grid", "quick", "--results", tmp_path / "r", "--scratch", tmp_path)
    lock = Scratch(tmp_path).lock
    with FileLock(lock(live)), FileLock(lock(baseline)):
        said = call(*here)
    assert f"{failed}: failed, MemoryError: too much\n" in said
    assert f"{live}: running, epoch 3 of {live.config['epochs']}\n" in said
    assert f"{baseline}: running\n" in said
    assert f"{killed}: cut at epoch 3, the same command goes on\n" in said
    assert f"{early}: cut early, the same command goes on\n" in said
    assert sum(int(n) for n in re.findall(r"(\d+) running", said)) == 2 and "loss" not in said
    assert "running" not in call(*here)
    assert sorted(path.name for path in tmp_path.glob("*.lock")) == sorted(
        lock(run).name for run in (live, killed, baseline)
    )


def test_measures_are_rounded_and_settings_are_not(tmp_path):
    runs = grid([0], lr=10**-3.5)
    do(tmp_path, runs)
    record = Store(tmp_path / "results").read(runs[0])
    losses = np.array(record["curve"]["loss"])
    assert (losses == [float(f"{loss:.6g}") for loss in losses]).all()
