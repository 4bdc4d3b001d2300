"""The runner with all seeds of a setting in one batched model, and within a time limit."""

import json

import pytest
from click.testing import CliRunner

from seqrec_lib.__main__ import main
from seqrec_lib.study import measuring, runner
from seqrec_lib.study.grid import load_grid
from seqrec_lib.study.progress import estimate
from seqrec_lib.study.records import Store, comparable, results
from seqrec_lib.study.runner import run_grid
from seqrec_lib.training import loop

GRID = {
    "seeds": [0, 1, 2],
    "config": {"max_len": 8, "dim": 8, "epochs": 4, "dropout": 0.0, "batch_size": 32},
    "datasets": {"world-markov": {"data": {"num_users": 80, "num_items": 20, "length": 8}}},
    "runs": [{"datasets": ["world-markov"], "attentions": ["softmax", "uniform"]}],
}
DROPOUT = {**GRID, "config": {**GRID["config"], "dropout": 0.2}}


@pytest.fixture(autouse=True)
def save_every_epoch(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0)


def study(folder, grid=DROPOUT, **options):
    places = {"results": folder / "results", "scratch": folder / "runs", "say": lambda text: None}
    return run_grid(load_grid(grid), **{**places, "seeds_at_once": True, **options})


def records(folder, grid=DROPOUT):
    return [comparable(Store(folder / "results").read(run)) for run in load_grid(grid)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with the six records of ``DROPOUT``, made without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    assert len(study(folder).done) == 6
    return folder


def shape(value):
    """What a record holds but for its measured numbers."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return None if isinstance(value, float) else value


def test_without_dropout_the_records_are_those_of_runs_alone(tmp_path):
    study(tmp_path / "together", GRID)
    study(tmp_path / "alone", GRID, seeds_at_once=False)
    for a, b in zip(records(tmp_path / "together", GRID), records(tmp_path / "alone", GRID),
                    strict=True):  # fmt: skip
        assert (a.pop("seeds_at_once"), b.pop("seeds_at_once")) == (3, 1)
        assert a["curve"]["loss"] == pytest.approx(b["curve"]["loss"], rel=1e-4)
        assert a["test"] == pytest.approx(b["test"], abs=1e-3)
        assert a["mixing"]["attn_res_ln"] == pytest.approx(b["mixing"]["attn_res_ln"], rel=1e-3)
        assert shape(a) == shape(b)


def test_with_dropout_they_differ_in_measured_numbers_alone(whole, tmp_path):
    study(tmp_path, seeds_at_once=False)
    free = {"best_epoch": None, "seeds_at_once": None}
    for a, b in zip(records(whole), records(tmp_path), strict=True):
        assert shape(a) | free == shape(b) | free
        assert a["test"] != b["test"]


def test_how_many_seeds_shared_a_model_is_in_the_table(whole):
    assert set(results(whole / "results")["seeds_at_once"]) == {3}
    assert set(results()["seeds_at_once"]) >= {1}  # records from before there was such a field


def test_a_gpu_trains_seeds_at_once_and_a_cpu_does_not(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(runner, "spread", lambda work, todo, *_: jobs.append(todo) or ())
    study(tmp_path, seeds_at_once=None, device="cpu")
    monkeypatch.setattr(runner, "pick_device", lambda name: runner.torch.device("cuda"))
    study(tmp_path, seeds_at_once=None)
    assert [[run.seed for run in job] for job in jobs[0]] == [[0], [0], [1], [1], [2], [2]]
    assert [[run.seed for run in job] for job in jobs[1]] == [[0, 1, 2], [0, 1, 2]]


def interrupt(monkeypatch, owner, name, call):
    """Let the ``call``-th call of ``owner.name`` be followed by Ctrl-C."""
    honest, calls = getattr(owner, name), []

    def interrupted(*args, **options):
        result = honest(*args, **options)
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (loop, "save_checkpoint", 2),  # in training
        (measuring, "evaluate", 3),  # measuring
        (Store, "write", 1),  # one record written, two to come
    ],
)
def test_interrupted_at_any_moment_they_end_with_the_same_records(
    whole, tmp_path, monkeypatch, owner, name, call
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, owner, name, call)
        study(tmp_path)
    begun = len(list((tmp_path / "results").rglob("*.json")))
    trained, save = [], loop.save_checkpoint
    monkeypatch.setattr(
        loop, "save_checkpoint", lambda *args, **more: trained.append(1) or save(*args, **more)
    )
    report = study(tmp_path)
    assert len(report.skipped) == begun == (name == "write")
    assert len(report.done) == 6 - begun
    assert len(trained) == (2 if owner is loop else 0) + 4  # of four epochs each
    assert records(tmp_path) == records(whole)
    assert not [*(tmp_path / "runs").glob("*.pt"), *(tmp_path / "runs").glob("*.running")]


def test_seeds_begun_at_once_and_done_one_by_one_leave_no_checkpoint(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, loop, "save_checkpoint", 2)
        study(tmp_path)
    left = lambda: [*(tmp_path / "runs").glob("*.seeds*")]  # noqa: E731
    assert len(left()) == 2  # the checkpoint and its settings
    softmax = [run for run in load_grid(DROPOUT) if run.attention == "softmax"]
    for number, run in enumerate(softmax):
        assert len(left()) == 2, number
        options = {"results": tmp_path / "results", "scratch": tmp_path / "runs"}
        run_grid([run], **options, seeds_at_once=False, say=lambda text: None)
    assert not left()


def test_a_setting_that_fails_is_reported_with_all_its_seeds(tmp_path):
    short = {"variant": "bad", "data": {"num_users": 80, "num_items": 20, "length": 1}}
    blocks = [{"datasets": ["world-markov"], **block} for block in (short, {})]
    report = study(tmp_path, {**GRID, "runs": blocks})
    assert [run.variant for run in report.failed] == ["bad"] * 3
    assert [run.variant for run in report.done] == ["main"] * 3
    assert len([*(tmp_path / "runs").glob("*.failed.txt")]) == 3


@pytest.mark.parametrize("seeds_at_once", [True, False])
def test_in_pieces_of_an_epoch_they_end_with_the_same_records(
    whole, tmp_path, monkeypatch, seeds_at_once
):
    """The clock strikes with every epoch: each command does one of each run that it begins."""
    if not seeds_at_once:
        whole = tmp_path / "whole"
        study(whole, seeds_at_once=False)
    clock, save = [0.0], loop.save_checkpoint

    def strike(*args, **more):
        clock[0] += 60
        save(*args, **more)

    monkeypatch.setattr(runner.time, "time", lambda: clock[0])
    monkeypatch.setattr(loop, "save_checkpoint", strike)
    options = {"seeds_at_once": seeds_at_once, "time_limit": 0.5}
    report, pieces = study(tmp_path, **options), 1
    assert len(report.cut) == 6 and not report.done
    while report.cut:
        assert pieces < 50
        report, pieces = study(tmp_path, **options), pieces + 1
    assert pieces == 4 * (2 if seeds_at_once else 6) + 1
    assert records(tmp_path) == records(whole)


def test_a_time_limit_is_no_failure(tmp_path):
    grid = ("--grid", "quick", "--results", tmp_path / "results", "--scratch", tmp_path)
    line = ["study", "run", *map(str, grid), "--seeds-at-once", "--time-limit", "0"]
    done = CliRunner().invoke(main, line)
    assert done.exit_code == 3, done.output
    assert "21 left when time was up" in done.output and "nothing is left" not in done.output


def test_the_estimate_goes_by_the_nearest_records(tmp_path):
    """Seconds an epoch of the same weighting; another's by its operations."""
    attentions = ["softmax", "awrsr-additive", "recency"]
    grid = {**GRID, "runs": [{"datasets": ["world-markov"], "attentions": attentions}]}
    softmax, refined, recency = load_grid(grid)[:3]
    study(tmp_path, {**GRID, "seeds": [0]})
    record = Store(tmp_path / "results").read(softmax)
    fields = {name: value for name, value in record.items() if name not in softmax.axes}
    store = Store(tmp_path / "invented")

    def seconds(run):
        return estimate([run], store, "cpu")[run].seconds

    assert seconds(softmax) < 1  # a rate, and half the epochs
    store.write(softmax, {**fields, "seconds": 10.0})
    store.write(refined, {**fields, "config": dict(refined.config), "seconds": 70.0})
    costs = [seconds(run) for run in load_grid(grid)[3:6]]
    assert costs[:2] == pytest.approx([10, 70]) and 10 < costs[2] < 70
    (half, *_) = load_grid({**grid, "config": {**GRID["config"], "epochs": 2}})
    assert seconds(half) == pytest.approx(5)
    store.write(softmax, {**fields, "device": "cuda: some", "seconds": 0.1})
    assert seconds(softmax) > 9  # what a GPU takes says nothing


def test_the_settings_of_several_seeds_are_looked_at_too(tmp_path, monkeypatch):
    """A checkpoint of other settings is neither continued nor does it choose the seeds."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, loop, "save_checkpoint", 2)
        study(tmp_path)
    (begun,) = (tmp_path / "runs").glob("*.seeds0-1-2.*.pt")
    assert json.loads(begun.with_suffix(".json").read_text())["config"]["dropout"] == 0.2
    report = study(tmp_path, {**GRID, "seeds": [1, 2]})
    assert [(run.seed, run.attention) for run in report.done] == [
        (1, "softmax"), (2, "softmax"), (1, "uniform"), (2, "uniform"),
    ]  # fmt: skip
