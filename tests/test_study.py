"""The study: what a grid means, what a record guarantees, and that nothing can upset the runner."""

import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import seqrec_lib as sr
from seqrec_lib import plotting
from seqrec_lib.__main__ import main
from seqrec_lib.study import (
    comparison,
    measuring,
    progress,
    provenance,
    records,
    runner,
    tables,
)
from seqrec_lib.study import grid as grids
from seqrec_lib.study.comparison import chosen
from seqrec_lib.study.grid import Run, load_grid, select
from seqrec_lib.study.measuring import run_one
from seqrec_lib.study.provenance import data_sha256
from seqrec_lib.study.records import DamagedRecord, Store, comparable, results, score
from seqrec_lib.study.runner import run_grid
from seqrec_lib.study.scratch import Scratch, origin_of
from seqrec_lib.study.spreading import Outcome, spread
from seqrec_lib.training import loop
from study_helpers import runs_of

TINY = {
    "seeds": [0, 1],
    "config": {"max_len": 8, "dim": 8, "epochs": 3, "dropout": 0.2},
    "datasets": {
        "world-markov": {"data": {"num_users": 80, "num_items": 20, "length": 8}},
    },
    "runs": [{"datasets": ["world-markov"], "attentions": ["softmax", "uniform"]}],
}


def with_runs(*blocks, **changes):
    return {**TINY, **changes, "runs": [{"datasets": ["world-markov"], **b} for b in blocks]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the four records of ``TINY``, made one after the other in this process."""
    folder = tmp_path_factory.mktemp("tiny")
    report = run_grid(load_grid(TINY), results=folder / "results", scratch=folder / "runs")
    assert len(report.done) == 4 and not report.failed
    return folder / "results"


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*.json"))


def same(a, b, grid=TINY):
    """Whether two folders hold the same records, times and memory apart."""
    for run in load_grid(grid):
        assert comparable(Store(a).read(run)) == comparable(Store(b).read(run)), run
    assert files(a) == files(b)


# ---- grids -----------------------------------------------------------------------------------


def test_a_grid_is_the_product_of_its_lists_seed_by_seed():
    runs = load_grid(TINY)
    assert [(run.seed, run.attention) for run in runs] == [
        (0, "softmax"),
        (0, "uniform"),
        (1, "softmax"),
        (1, "uniform"),
    ]
    assert runs[0].config["dim"] == 8 and runs[0].config["data"]["num_users"] == 80
    assert runs[0].config["lr"] == 1e-3  # the library's default is written out
    assert str(runs[0].path) == "worlds/markov.leave-one-out.sasrec.softmax.ce.seed0.json"


def test_the_nearer_setting_wins_and_baselines_are_done_once():
    blocks = {"models": ["sasrec", "item-knn"], "dim": 4, "variant": "narrow", "decay": 0.5}
    runs = load_grid(with_runs(blocks, config={"dim": 8, "epochs": 2}))
    assert [run.model for run in runs] == ["sasrec", "sasrec", "item-knn"]
    assert runs[0].config["dim"] == 4 and "decay" not in runs[0].config
    assert runs[2].config["decay"] == 0.5 and "epochs" not in runs[2].config
    assert runs[0].key == "world-markov.leave-one-out.sasrec.softmax.ce.narrow.seed0"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({**TINY, "run": []}, "unknown run"),
        ({"seeds": [0]}, "no \\[\\[runs\\]\\]"),
        (with_runs({"learning_rate": 1}), "block 1 .*unknown setting learning_rate.* lr"),
        (with_runs({"datasets": ["beuaty"]}), "no data set 'beuaty'.*beauty"),
        (with_runs({"attentions": ["soft"]}), "no attention 'soft'.*softmax"),
        (with_runs({"losses": ["mse"]}), "no loss 'mse'.*bce"),
        (with_runs({"splits": ["random"]}), "no split 'random'.*global-temporal"),
        (with_runs({"models": ["gru"]}), "no model 'gru'.*stosa"),
        (with_runs({"datasets": []}), "datasets .* missing"),
        (with_runs({"datasets": ["beauty"], "data": {"seed": 1}}), "beauty is a file"),
        (with_runs({}, {"lr": 1.0}), "block 2 .*variant"),
        ({**TINY, "datasets": {"beuty": {"dim": 4}}}, r"\[datasets.beuty\]: no data set 'beuty'"),
        (with_runs({"variant": "a/b"}), "variant = 'a/b' names a file"),
        (with_runs({"variant": "none"}), "block 1 .*would name the runs of main"),
        (with_runs({"weighting": {"reading": "weights"}}), "'softmax' has no setting reading"),
        (with_runs({"attentions": ["wasserstein"]}), "made for Gaussians, and SASRec has none"),
        (with_runs({"models": ["stosa"], "attentions": ["uniform-loose"]}), "the strict form"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(grid, message):
    with pytest.raises(ValueError, match=message):
        load_grid(grid)


def test_grids_are_files(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[runs]]\ndatasets = ["lastfm"]\n')
    assert [run.key for run in load_grid(path)] == ["lastfm.leave-one-out.sasrec.softmax.ce.seed0"]
    path.write_text("[[runs]\n")
    with pytest.raises(ValueError, match="mine.toml is not TOML"):
        load_grid(path)
    with pytest.raises(FileNotFoundError, match="main, quick"):
        load_grid("no-such-grid")


def test_the_main_grid_covers_both_papers():
    runs = load_grid("main")
    assert len({run.path for run in runs}) == len(runs)
    core = {(run.dataset, run.attention, run.seed) for run in runs if run.variant == "main"}
    for dataset in ("beauty", "ml-1m", "lastfm", "ml-100k", "world-series"):
        for attention in ("softmax", "uniform", "awrsr-additive", "positional"):
            assert all((dataset, attention, seed) in core for seed in range(5))
    # Within a data set, only what a block is about may differ.
    for group in tables.settings_of(runs, {"model": "sasrec", "loss": "ce", "variant": "main"}):
        place = {"dataset": group[0].dataset, "split": group[0].split, "loss": "ce"}
        softmax = tables.settings_of(runs, {**place, "attention": "softmax", "variant": "main"})
        assert group[0].config == softmax[0][0].config


def test_select_refuses_what_is_not_there():
    runs = load_grid(TINY)
    assert len(select(runs, {"seed": ["1"], "attention": ["uniform"]})) == 1
    with pytest.raises(ValueError, match="there are 0, 1"):
        select(runs, {"seed": ["7"]})
    with pytest.raises(ValueError, match="no 'colour'"):
        select(runs, {"colour": ["red"]})


# ---- records ---------------------------------------------------------------------------------


def test_a_record_holds_what_the_run_measured(tiny):
    run = load_grid(TINY)[0]
    record = Store(tiny).read(run)
    inter = sr.worlds.markov(num_users=80, num_items=20, length=8)
    split = sr.leave_one_out(inter)
    model = sr.SASRec(20, max_len=8, dim=8, dropout=0.2, seed=0)
    history = sr.fit(model, split, epochs=3, seed=0, progress=False)
    metrics = sr.evaluate(model, split)
    for name, value in metrics.items():
        assert record["test"][name] == pytest.approx(value, rel=1e-4)
        assert record["test_filtered"][name] == pytest.approx(metrics.filtered[name], rel=1e-4)
    assert record["curve"]["loss"] == pytest.approx(history.column("loss"), rel=1e-4)
    assert record["epochs"] == 3 and record["best_epoch"] == history.best_epoch
    mixing = sr.attention_statistics(model, split)["mixing"]["attn_res_ln"]
    assert record["mixing"]["attn_res_ln"] == pytest.approx(mixing, rel=1e-3)
    with sr.intervene(model, "uniform"):
        swapped = sr.evaluate(model, split)["NDCG@10"]
    assert record["swapped"]["uniform"]["test"]["NDCG@10"] == pytest.approx(swapped, rel=1e-4)
    assert record["by_length"]["5-9"]["users"] == 80
    assert record["by_length"]["5-9"]["test"]["HR@10"] == record["test"]["HR@10"]
    assert record["data_sha256"] == data_sha256(inter)
    assert re.fullmatch(r"[0-9a-f]{12}(\+dirty)?|\d+\.\d+.*", record["code_version"])
    assert record["device"].startswith("cpu: ") and record["threads"] == 1
    assert len(Store(tiny).path(run).read_bytes()) < 30_000


def test_the_data_hash_sees_every_item_and_their_order():
    a = sr.Interactions([[1, 2, 3], [2, 1]], num_items=3)
    others = [[[1, 2, 3], [1, 2]], [[1, 2, 3, 2], [1]], [[1, 2, 3], [2, 2]]]
    hashes = {data_sha256(sr.Interactions(x, num_items=3)) for x in others}
    assert len(hashes | {data_sha256(a)}) == 4
    assert data_sha256(a) == data_sha256(sr.Interactions([[1, 2, 3], [2, 1]], 3))


def test_damage_is_noticed_wherever_it_is(tiny, tmp_path):
    run = load_grid(TINY)[0]
    whole = Store(tiny).path(run).read_text()
    store = Store(tmp_path)
    path = store.path(run)
    path.parent.mkdir(parents=True)
    cut = [whole[:n] for n in range(0, len(whole) - 2, 997)]
    digit = whole.index('"NDCG@10": 0.') + len('"NDCG@10": 0.')
    edited = [
        whole[:digit] + str((int(whole[digit]) + 1) % 10) + whole[digit + 1 :],
        whole.replace('"seed": 0', '"seed": 1'),
        whole.replace('"loss"', '"lass"'),
        "[]",
    ]
    for text in [*cut, *edited]:
        assert text != whole
        path.write_text(text)
        with pytest.raises(DamagedRecord):
            store.read(run)
        assert store.state(run) == "damaged"
    with pytest.warns(UserWarning, match="no whole record"):
        assert results(tmp_path).empty
    path.write_text(whole)
    assert store.state(run) == "done"


@pytest.mark.parametrize("half", [True, False])
def test_what_a_killed_writer_left_is_no_record(tiny, tmp_path, half):
    run = load_grid(TINY)[0]
    store, text = Store(tmp_path), Store(tiny).path(run).read_text()
    path = store.path(run)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (path.parent / f".{path.name}.x7.json").write_text(text[: 99 if half else None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(store)) == 1


def test_a_damaged_record_is_set_aside_and_made_again(tiny, tmp_path):
    runs = load_grid(TINY)[:1]
    path = Store(tmp_path / "results").path(runs[0])
    path.parent.mkdir(parents=True)
    path.write_text("half a rec")
    said = []
    report = run_grid(runs, results=tmp_path / "results", scratch=tmp_path, say=said.append)
    assert report.done == runs and "damaged" in said[0]
    assert path.with_name(path.name + ".damaged").read_text() == "half a rec"
    assert comparable(Store(tmp_path / "results").read(runs[0])) == comparable(
        Store(tiny).read(runs[0])
    )


def test_another_configuration_is_another_run(tiny):
    changed = load_grid({**TINY, "config": {**TINY["config"], "dim": 16}})[0]
    assert changed.path == load_grid(TINY)[0].path
    assert Store(tiny).state(changed) == "outdated"


def test_a_setting_that_came_later_does_not_outdate_a_record(tiny, monkeypatch):
    run = load_grid(TINY)[0]
    later = Run(**run.axes, config={**run.config, "brand_new": 1})
    assert Store(tiny).state(later) == "outdated"
    known = grids.defaults("sasrec")
    monkeypatch.setattr(records, "defaults", lambda model: {**known, "brand_new": 1})
    assert Store(tiny).state(later) == "done"


def test_results_is_a_table_of_runs(tiny):
    table = results(tiny)
    assert len(table) == 4 and set(table["attention"]) == {"softmax", "uniform"}
    assert len(results(tiny, seed=1)) == 2
    one = results(tiny, seed=[1], attention="softmax").iloc[0]
    record = Store(tiny).read(load_grid(TINY)[2])
    assert one["test_filtered NDCG@10"] == record["test_filtered"]["NDCG@10"]
    assert one["mixing attn_res_ln"] == pytest.approx(np.mean(record["mixing"]["attn_res_ln"]))
    for slip in (dict(dataset=["beauty", "beuty"]), dict(attention="sofmax"), dict(seed=99)):
        with pytest.raises(ValueError, match=f"no run has {[*slip][0]}=.*; there are"):
            sr.results(**slip)
    assert sr.results(dataset="anime").empty  # known, and not yet run
    with pytest.raises(KeyError, match="no 'sedd'"):
        results(tiny, sedd=1)
    assert "dataset" in results(tiny / "nothing")


def test_every_record_of_this_checkout_is_whole():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for record in Store():
            assert record["dataset"] and not record["device"].startswith("/")


# ---- the runner ------------------------------------------------------------------------------


def test_what_is_done_is_skipped(tiny, tmp_path):
    before = {path: (tiny / path).stat().st_mtime_ns for path in files(tiny)}
    report = run_grid(load_grid(TINY), results=tiny, scratch=tmp_path)
    assert len(report.skipped) == 4 and not report.done
    assert before == {path: (tiny / path).stat().st_mtime_ns for path in files(tiny)}


def test_records_do_not_depend_on_how_the_grid_is_spread(tiny, tmp_path):
    report = run_grid(load_grid(TINY), results=tmp_path / "a", scratch=tmp_path / "s", jobs=2)
    assert len(report.done) == 4
    same(tmp_path / "a", tiny)
    assert not list((tmp_path / "s").glob("*.pt"))  # checkpoints go when their record is there


def test_dask_gives_the_same_records(tiny, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None):
        report = run_grid(
            load_grid(TINY), results=tmp_path / "a", scratch=tmp_path / "s", jobs=2, backend="dask"
        )
    assert len(report.done) == 4
    same(tmp_path / "a", tiny)


def test_a_failed_run_is_reported_and_stops_no_other(tmp_path):
    bad = {"variant": "bad", "data": {"num_users": 80, "num_items": 20, "length": 1}}
    runs = load_grid(with_runs(bad, {}))
    report = run_grid(runs, results=tmp_path / "results", scratch=tmp_path / "s")
    assert [run.variant for run in report.failed] == ["bad", "bad"]
    assert [run.variant for run in report.done] == ["main", "main"]
    assert "length" in report.failed[runs[0]]
    assert Scratch(tmp_path / "s").traceback(runs[0]).read_text() == report.failed[runs[0]]
    assert runner.Store(tmp_path / "results").state(runs[0]) == "missing"


def test_two_commands_do_not_do_one_run_twice(tiny, tmp_path):
    from filelock import FileLock

    runs = load_grid(TINY)[:2]
    with FileLock(Scratch(tmp_path).lock(runs[0])):
        report = run_grid(runs, results=tmp_path / "results", scratch=tmp_path)
    assert report.busy == runs[:1] and report.done == runs[1:]


LONGER = {**TINY, "config": {**TINY["config"], "epochs": 40, "patience": None}}


def do_longer(folder):
    loop.SAVE_EVERY = 0.02  # so that some epochs are in the file and some are not
    run_grid(
        load_grid(LONGER),
        results=folder / "results",
        scratch=folder / "runs",
        say=lambda text: None,
    )


def test_twenty_interruptions_leave_no_trace(tmp_path):
    """Each in the midst of a training, which the next command goes on with."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["seqrec_lib.study"])

    def start(folder):
        process = context.Process(target=do_longer, args=(folder,))
        process.start()
        return process

    def finish(folder):
        last = start(folder)
        last.join()
        assert last.exitcode == 0
        same(folder / "results", tmp_path / "undisturbed" / "results", LONGER)

    undisturbed = start(tmp_path / "undisturbed")
    undisturbed.join()
    assert undisturbed.exitcode == 0
    rng, begun, cut, folder = random.Random(0), 0, 0, tmp_path / "cut-0"
    while cut < 20:
        begun += 1
        assert begun < 200, f"only {cut} interruptions met a training"
        process = start(folder)
        while process.is_alive() and not any((folder / "runs").glob("[!.]*.pt")):
            process.join(0.005)
        process.join(rng.uniform(0.0, 0.2))
        if process.is_alive():
            os.kill(process.pid, [signal.SIGKILL, signal.SIGINT][cut % 2])
        process.join()
        cut += any((folder / "runs").glob("[!.]*.pt"))  # to go on from
        if len([*folder.glob("results/*/*.json")]) == len(load_grid(LONGER)):
            finish(folder)
            folder = tmp_path / f"cut-{begun}"
    finish(folder)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_the_processes_of_a_killed_command_end_with_it(tmp_path):
    """Nobody waits for what they do, and the next command needs their cores and their locks."""
    grid = {**TINY, "seeds": list(range(8)), "config": {**TINY["config"], "epochs": 100_000}}
    grid["config"]["patience"] = None
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    code = (
        "import json; from seqrec_lib.study.grid import load_grid; "
        "from seqrec_lib.study.runner import run_grid; "
        "run_grid(load_grid(json.load(open('grid.json'))), results='r', scratch='s', jobs=2)"
    )
    command = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_until(lambda: len([*tmp_path.glob("s/*.running")]) >= 2 or command.poll() is not None)
    workers = children(command.pid)
    command.kill()
    command.wait()
    assert len(workers) >= 2
    wait_until(lambda: not any(map(alive, workers)))
    assert not [*tmp_path.glob("r/*/*.json")]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_command_says_that_it_goes_on(sent, tmp_path):
    (tmp_path / "grid.toml").write_text(
        "seeds = [0]\nconfig = {max_len = 8, dim = 8, epochs = 100000}\n"
        "[datasets.world-markov]\ndata = {num_users = 80, num_items = 20, length = 8}\n"
        '[[runs]]\ndatasets = ["world-markov"]\nattentions = ["softmax"]\n'
    )
    line = ["-m", "seqrec_lib", "study", "run", "--grid", "grid.toml", "--results", "r"]
    command = subprocess.Popen(
        [sys.executable, *line, "--scratch", "s", "--device", "cpu"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: any("epoch" in path.read_text() for path in tmp_path.glob("s/*.running")))
    command.send_signal(sent)
    _, said = command.communicate()
    assert command.returncode == 130 and "interrupted; the same command goes on" in said
    assert "Traceback" not in said


def wait_until(what, seconds=90):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.1)


def children(parent):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True)
    return [int(pid) for pid in found.stdout.split()]


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def stop(which, entry):
    raise KeyboardInterrupt


def test_a_record_names_every_code_and_device_that_its_training_went_through(tmp_path, monkeypatch):
    run, places = load_grid(TINY)[0], {"checkpoint": tmp_path / "run.pt"}
    for code in "aab":
        monkeypatch.setattr(measuring, "describe", lambda where, code=code: f"cpu: {code}")
        if code == "a":
            with pytest.raises(KeyboardInterrupt):
                run_one(run, code=code, on_epoch=stop, **places)
    record = run_one(run, code="b", **places)
    assert record["code_version"] == "a, then b" and record["device"] == "cpu: a, then cpu: b"


def test_other_data_are_neither_trained_on_further_nor_put_beside(tmp_path, monkeypatch):
    first, second = load_grid(TINY)[:2]
    places = {"results": tmp_path / "results", "scratch": tmp_path / "s", "say": lambda text: None}
    assert run_grid([first], **places).done == [first]
    with pytest.raises(KeyboardInterrupt):
        run_one(second, code="a", on_epoch=stop, checkpoint=tmp_path / "run.pt")
    monkeypatch.setattr(measuring, "data_sha256", lambda inter: "0" * 64)
    measuring._load.cache_clear()
    (why,) = run_grid([second], **places).failed.values()
    assert "1 records of world-markov are of other data" in why and "--results" in why
    again = run_one(second, code="b", checkpoint=tmp_path / "run.pt")
    assert again["code_version"] == "b" and again["epochs"] == 3
    measuring._load.cache_clear()


def test_a_record_under_the_name_of_another_run_is_damaged(tiny, tmp_path):
    run, other = load_grid(TINY)[:2]
    store = Store(tmp_path)
    store.path(other).parent.mkdir(parents=True)
    store.path(other).write_bytes(Store(tiny).path(run).read_bytes())
    assert store.state(other) == "damaged"
    with pytest.raises(DamagedRecord, match="it is the record of world-markov"):
        store.read(other)
    with pytest.warns(UserWarning, match="it is the record of"):
        assert results(tmp_path).empty


def test_a_checkpoint_of_other_settings_is_not_continued(tiny, tmp_path):
    other = load_grid({**TINY, "config": {**TINY["config"], "dim": 16}})[0]
    run_one(other, checkpoint=tmp_path / f"{other.key}.pt")
    origin_of(tmp_path / f"{other.key}.pt").write_text(json.dumps(dict(other.config)))
    run = load_grid(TINY)[0]
    report = run_grid([run], results=tmp_path / "results", scratch=tmp_path)
    assert report.done == [run]
    assert comparable(Store(tmp_path / "results").read(run)) == comparable(Store(tiny).read(run))


def test_half_written_checkpoints_go_with_the_run_they_were_of(tmp_path):
    run, other = load_grid(TINY)[:2]
    mine, others = (Scratch(tmp_path).checkpoint((each,)) for each in (run, other))
    for path in (mine, origin_of(mine), others):
        (tmp_path / f".{path.name}.x7.tmp").touch()
    run_grid([run], results=tmp_path / "results", scratch=tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] == [f".{others.name}.x7.tmp"]


def test_a_record_of_other_settings_is_not_replaced_without_a_word(tiny, tmp_path):
    run, other = (load_grid({**TINY, "config": {**TINY["config"], **more}})[0]
                  for more in ({}, {"dim": 12, "epochs": 1}))  # fmt: skip
    folder, said = tmp_path / "results", []
    record = Store(tiny).read(run)
    Store(folder).write(run, {name: record[name] for name in record.keys() - run.axes.keys()})
    assert run_grid([other], results=folder, scratch=tmp_path, say=said.append).done == [other]
    assert said[0].startswith("outdated: ") and "dim 8, now 12; epochs 3, now 1" in said[0]


def test_the_records_of_a_release_are_not_added_to(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "seqrec_lib"
    monkeypatch.setattr(records, "__file__", str(package / "study" / "records.py"))
    assert records.results_dir() == package / "_results"
    for root in (None, package / "_results"):
        with pytest.raises(PermissionError, match="installed release.*--results DIR"):
            run_grid(load_grid(TINY), results=root, scratch=tmp_path)
    for command in (["run", "--scratch", tmp_path], ["profile", "lastfm"]):
        assert call(*command, code=1).startswith("Error: ")
    assert not package.exists()


def test_kept_models_are_those_of_the_records(tiny, tmp_path):
    run = load_grid(TINY)[0]
    run_grid([run], results=tmp_path / "r", scratch=tmp_path / "s", keep_models=tmp_path / "m")
    model = sr.load(tmp_path / "m" / f"{run.key}.safetensors")
    split = sr.leave_one_out(sr.worlds.markov(num_users=80, num_items=20, length=8))
    ndcg = Store(tiny).read(run)["test"]["NDCG@10"]
    assert sr.evaluate(model, split)["NDCG@10"] == pytest.approx(ndcg, rel=1e-4)


def test_cost_grows_with_what_is_computed():
    blocks = [
        {"datasets": ["beauty"], "losses": ["bce", "ce"]},
        {"datasets": ["ml-1m"], "attentions": ["softmax", "awrsr-additive"], "max_len": 200},
        {"datasets": ["ml-1m"], "max_len": 200, "num_blocks": 3, "variant": "deep"},
    ]
    costs = [
        progress.operations(run) for run in load_grid(with_runs(*blocks, seeds=[0], config={}))
    ]
    bce, beauty, ml_1m, refined, deep = costs
    assert bce < beauty < ml_1m < min(refined, deep)
    assert 1e12 < ml_1m < 2.5e12  # a SASRec of width 64: one to two million million


def test_what_refinement_adds_to_the_cost_is_what_it_adds_to_the_operations():
    kinds = ["softmax", "awrsr-value", "awrsr-additive"]
    world = {"data": {"num_users": 80, "num_items": 200, "length": 60}, "max_len": 60, "dim": 32}
    runs = load_grid(with_runs({"attentions": kinds, "seeds": [0], **world}))
    estimated = np.array([progress.operations(run) for run in runs])
    counted = sr.costs(kinds, 60, 200, dim=32, seconds=0, device="cpu")["gflop"].to_numpy()
    assert estimated / estimated[0] == pytest.approx(counted / counted[0], rel=0.1)
    assert counted[2] > 1.5 * counted[0]  # or the test could not tell


def test_cuda_is_begun_before_anything_is_asked_of_a_device(monkeypatch):
    called = []
    for name in ("init", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device, name=name: called.append(name))
    provenance.reset_peak_memory(torch.device("cuda:0"))
    assert called == ["init", "reset_peak_memory_stats"]
    monkeypatch.setattr(measuring, "pick_device", torch.device)
    (counted,) = load_grid(with_runs({"models": ["popularity"]}))
    assert run_one(counted, device="cuda:0")["device"].startswith("cpu: ")
    assert len(called) == 2  # a baseline needs no GPU


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be reset")
def test_the_peak_of_a_worker_is_not_that_of_whoever_started_it():
    large = np.ones(2**29, np.uint8)
    code = """import torch; from seqrec_lib.study.provenance import peak_memory, reset_peak_memory
cpu = torch.device("cpu"); reset_peak_memory(cpu); print(peak_memory(cpu))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = provenance.peak_memory(torch.device("cpu"))
    assert len(large) / 2**20 < own and 10 < float(done.stdout) < own - 300


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_numbered_gpu_may_be_the_first_thing_a_process_asks_of_cuda():
    code = """import torch; from seqrec_lib.study.provenance import reset_peak_memory
reset_peak_memory(torch.device("cuda:0"))"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- tables ----------------------------------------------------------------------------------


#: So that each metric over which reliance is averaged has another effect.
SHIFT = {"HR@1": 0.001, "HR@10": 0.002, "HR@100": 0.005, "NDCG@100": 0.01}


@pytest.fixture(scope="module")
def invented(tiny, tmp_path_factory):
    """Records of three seeds whose NDCG@10 is made up: softmax .50 .52 .54, uniform .30 .31 .35."""
    folder = tmp_path_factory.mktemp("invented")
    base = Store(tiny).read(load_grid(TINY)[0])
    base = {name: value for name, value in base.items() if name not in Run("x").axes}
    runs = load_grid({**TINY, "seeds": [0, 1, 2, 3]})
    values = {"softmax": (0.50, 0.52, 0.54), "uniform": (0.30, 0.31, 0.35)}
    for run in runs:
        if run.seed < 3:
            value = values[run.attention][run.seed]
            metrics = {name: value - SHIFT.get(name, 0) * run.seed for name in base["test"]}
            mixing = {"attn_res_ln": [value, value + 0.1]}
            Store(folder).write(run, {**base, "test": metrics, "mixing": mixing})
    return folder


def test_means_spreads_and_intervals(invented):
    summary = tables.summarize(results(invented), "test NDCG@10").set_index("attention")
    row = summary.loc["softmax"]
    assert (row["seeds"], row["mean"]) == (3, pytest.approx(0.52))
    assert row["sd"] == pytest.approx(0.02)
    # Student's t with two degrees of freedom: 4.303 * 0.02 / sqrt(3)
    assert row["high"] - row["mean"] == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)


def test_effects_are_those_of_the_seeds(invented):
    (row,) = tables.effects(results(invented)).to_dict("records")
    g = sr.hedges_g([0.50, 0.52, 0.54], [0.30, 0.31, 0.35])
    assert (row["g"], row["g_low"], row["g_high"]) == pytest.approx((g.g, g.low, g.high))
    assert row["difference"] == pytest.approx(0.20) and row["verdict"] == "different"
    (row,) = tables.effects(results(invented, seed=0)).to_dict("records")
    assert row["verdict"] == "too few seeds" and np.isnan(row["g"])


def test_enough_seeds_without_spread_are_not_too_few(invented):
    table = results(invented).assign(**{"test HR@1": 0.25, "test HR@5": 0.0, "test HR@20": np.nan})
    for metric, seeds, verdict in (
        ("test HR@1", 3, "no spread"),
        ("test HR@5", 3, "no spread"),
        ("test HR@20", 0, "too few seeds"),
    ):
        (row,) = tables.effects(table, metric=metric).to_dict("records")
        assert (row["seeds"], row["verdict"]) == (seeds, verdict)


def test_regimes_put_mixing_beside_reliance(invented):
    (row,) = tables.regimes(results(invented)).to_dict("records")
    assert row["mixing"] == pytest.approx(0.57)
    assert row["mixing_high"] - row["mixing"] == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-3)
    seeds = np.arange(3)
    each = [
        sr.hedges_g(np.array([0.50, 0.52, 0.54]) - SHIFT.get(name, 0) * seeds,
                    np.array([0.30, 0.31, 0.35]) - SHIFT.get(name, 0) * seeds).g
        for name in tables.RELIANCE
    ]  # fmt: skip
    assert len({round(g, 6) for g in each}) == len(each) == 5
    assert row["g"] == pytest.approx(np.mean(each), rel=1e-4)


def test_what_is_missing_comes_with_the_command_that_makes_it(invented):
    grid = {**TINY, "seeds": [0, 1, 2, 3]}
    table = tables.benchmark(grid, invented)
    assert list(table["seeds"]) == ["3 of 4", "3 of 4"]
    assert table["NDCG@10"].iloc[0] == "0.5200 ± 0.0200"
    assert list(table["missing"]) == list(tables.missing(grid, invented)["command"])
    for command, attention in zip(table["missing"], ("softmax", "uniform"), strict=True):
        assert [(r.attention, r.seed) for r in runs_of(command, grid)] == [(attention, 3)]
    assert (tables.benchmark(grid, invented / "none")["NDCG@10"] == "missing").all()


def test_studies_that_share_a_scratch_folder_leave_each_other_alone(tmp_path):
    scratch, (run, *_) = Scratch(tmp_path), load_grid(TINY)
    (other, *_) = load_grid({**TINY, "config": {**TINY["config"], "dim": 16}})
    assert run.key == other.key
    for file in (scratch.lock, scratch.marker, scratch.traceback, scratch.apart):
        assert file(run) != file(other)


@pytest.mark.parametrize("compare", [tables.effects, tables.regimes])
def test_a_comparison_shows_what_is_missing_and_nothing_that_was_never_planned(invented, compare):
    other = {"datasets": ["world-taste"], "variant": "other"}
    blocks = {}, {"attentions": ["softmax"], "losses": ["bce"]}, other
    grid = with_runs(*(TINY["runs"][0] | block for block in blocks), seeds=[0, 1, 2, 3])
    found = compare(results(invented, attention="softmax"))
    shown = tables.with_missing(found, grid=grid, root=invented)
    assert set(shown["loss"]) == {"ce"}  # of bce the grid has no uniform
    main, *others = shown.to_dict("records")
    assert (main["seeds"], main["verdict"]) == ("0 of 4", "runs missing")
    assert [row["variant"] for row in others] == (["other"] if compare is tables.effects else [])
    assert {row["seeds"] for row in others} <= {"0 of 4"}
    found = compare(results(invented))
    (row,) = tables.with_missing(found, grid=grid, root=invented, variant="main").to_dict("records")
    assert row["seeds"] == "3 of 4" and row["g"] == found["g"][0]
    assert row["verdict"] == found["verdict"][0] and "seed=3" in shlex.split(row["missing"])
    (row,) = tables.with_missing(
        found, grid=grid, root=invented, variant="main", seed=[0, 1, 2]
    ).to_dict("records")
    assert row["seeds"] == "3 of 3" and row["missing"] == ""


def test_commands_for_the_main_grid_do_exactly_what_is_missing(tmp_path):
    for row in tables.missing("main", tmp_path).sample(10, random_state=0).to_dict("records"):
        chosen = runs_of(row["command"], "main")
        assert [run.seed for run in chosen] == row["seeds"]
        assert all(getattr(run, name) == row[name] for run in chosen for name in tables.SETTING)


def test_published_points_keep_their_values():
    points = tables.published_regimes().set_index("dataset")
    assert len(points) == 14
    assert points.loc["ML-1M", "mixing"] == 0.410
    assert points.loc["ML-1M", "g"] == pytest.approx(np.mean([0.540, 1.403, 4.121, 1.833, 3.457]))
    # Five seeds against five: about 2.5 wide where g is 0.
    zero = points.loc["Toys"]
    assert zero["g_high"] - zero["g_low"] == pytest.approx(2.5, abs=0.05)
    assert (points["g_low"] < points["g"]).all() and (points["g"] < points["g_high"]).all()


def test_what_the_published_script_does_not_draw_is_there_on_demand():
    drawn, every = tables.published_regimes(), tables.published_regimes(commented_out=True)
    assert every.iloc[: len(drawn)].equals(drawn)
    assert list(every["dataset"][len(drawn) :]) == ["Zvuk"]
    assert every["g"].iloc[-1] == pytest.approx(-(2.1 + 6.287 + 4.104 + 5.475 + 8.21) / 5)


def test_published_reliance_on_one_metric():
    points = tables.published_regimes(metrics=["NDCG@10"]).set_index("dataset")
    assert points.loc["Sports", "g"] == -1.026 and points.loc["ML-1M", "g"] == 1.833
    everything = tables.published_regimes().set_index("dataset")
    assert (points["mixing"] == everything["mixing"]).all()
    with pytest.raises(KeyError):
        tables.published_regimes(metrics=["NDCG@11"])


def test_every_swap_of_every_run_is_a_row(invented):
    table = results(invented, seed=0)
    rows = tables.swapped(table)
    assert len(rows) == 2 * 3 and set(rows["swap"]) == {"", "uniform", "last"}
    assert (rows.loc[rows["swap"] == "", "lost"] == 0).all()
    softmax = table[table["attention"] == "softmax"].iloc[0]
    (row,) = rows[(rows["attention"] == "softmax") & (rows["swap"] == "last")].to_dict("records")
    assert row["value"] == softmax["swapped"]["last"]["test"]["NDCG@10"]
    assert row["lost"] == pytest.approx(1 - row["value"] / 0.50)
    assert tables.swapped(table[:0]).empty
    nothing = tables.swapped(table.assign(**{"test NDCG@10": 0.0}), "test NDCG@10")
    assert nothing["lost"].isna().all()


def test_a_run_is_judged_by_the_ranking_its_epochs_were_chosen_by():
    parts = {"test": {"NDCG@10": 0.2}, "test_filtered": {"NDCG@10": 0.3}}
    cases = {  # (data set, configuration): part
        ("world-taste", False): "test", ("world-taste", True): "test_filtered",
        ("beauty", False): "test", ("beauty", True): "test_filtered",
        ("world-taste", None): "test", ("beauty", None): "test_filtered",  # what counts pairs
    }  # fmt: skip
    for (dataset, seen), part in cases.items():
        config = {} if seen is None else {"filter_seen": seen}
        record = {"dataset": dataset, "config": config, **parts}
        assert score(record, "NDCG@10") == parts[part]["NDCG@10"]
        swap = {"test": {"NDCG@10": 0.4}, "test_filtered": {"NDCG@10": 0.5}}
        assert score(record, "NDCG@10", swap) == swap[part]["NDCG@10"]
        assert score(record, "test_filtered NDCG@10") == 0.3


def test_pairs_are_compared_seed_by_seed(invented):
    table = results(invented)
    table = table[(table["attention"] != "softmax") | (table["seed"] != 1)]  # a pair is broken
    (few,) = comparison.paired(table, "test NDCG@10", margin=0.01).to_dict("records")
    assert few["verdict"] == "too few seeds" and np.isnan([few["low"], few["p"]]).all()
    two = {"min_seeds": 2, "margin": 0.01}
    (row,) = comparison.paired(table, "test NDCG@10", **two).to_dict("records")
    assert (row["attention"], row["seeds"], row["verdict"]) == ("uniform", 2, "less")
    assert row["p"] < 0.05
    assert row["difference"] == pytest.approx((0.30 - 0.50 + 0.35 - 0.54) / 2)
    # Student's t with one degree of freedom: 12.706 * sd / sqrt(2), sd = .01 / sqrt(2)
    assert row["high"] - row["difference"] == pytest.approx(12.706 * 0.005, rel=1e-3)
    (other,) = comparison.paired(table, "test NDCG@10", "uniform", **two).to_dict("records")
    assert (other["difference"], other["verdict"]) == (pytest.approx(-row["difference"]), "more")
    assert comparison.paired(table, "test NDCG@10", against="last", **two).empty


@pytest.mark.parametrize(
    ("shift", "margin", "verdict"),
    [
        ([0.01, -0.01, 0.0], 0.1, "same"),  # the interval lies within the margin
        ([0.01, 0.012, 0.011], 0.1, "same"),  # surely more, and too little to matter
        ([0.01, -0.01, 0.0], 0.001, "undecided"),
        ([0.05, 0.06, 0.07], 0.01, "more"),
        ([-0.05, -0.06, -0.07], 0.01, "less"),
    ],
)
def test_the_verdict_on_pairs(invented, shift, margin, verdict):
    table = results(invented)
    table.loc[table["attention"] == "softmax", "x"] = values = np.array([0.3, 0.5, 0.9])
    table.loc[table["attention"] == "uniform", "x"] = values + shift
    (row,) = comparison.paired(table, "x", margin=margin).to_dict("records")
    assert row["verdict"] == verdict
    share = margin / values.mean()  # the same margin, told as a share of softmax's mean
    (row,) = comparison.paired(table, "x", margin=share, relative=True).to_dict("records")
    assert row["verdict"] == verdict
    (one,) = comparison.paired(table[table["seed"] == 0], "x", margin=margin).to_dict("records")
    assert one["verdict"] == "too few seeds" and np.isnan(one["low"])


def test_the_published_bands_stand_beside_the_softmax_runs(tmp_path):
    table = tables.benchmark("main", tmp_path, dataset="beauty", split="leave-one-out")
    band = table["published NDCG@10"].droplevel(["dataset", "split"])
    assert band["sasrec softmax"] == "0.0531 to 0.0588"
    assert band["sasrec softmax (bce)"] == "0.0318 to 0.0344"
    assert band["sasrec uniform"] == ""


def test_length_groups_and_curves_come_out_of_the_records(tiny):
    table = results(tiny)
    groups = tables.by_length(table, "test HR@10")
    assert list(groups["length"].cat.categories) == ["5-9"]
    assert list(groups["value"]) == list(table["test HR@10"])
    curves = tables.histories(table)
    assert len(curves) == 4
    history = curves["world-markov sasrec softmax, seed 0"]
    assert len(history) == 3 and history.best_epoch == table["best_epoch"][0]


def test_figures(tiny, invented):
    ax = plotting.regimes(tables.regimes(results(invented)), tables.published_regimes())
    assert {"ML-1M", "markov"} <= {text.get_text() for text in ax.texts}
    ax.figure.canvas.draw()
    names = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for a, b in combinations(names, 2))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["this study, worlds", "published"]
    points = tables.regimes(results(invented)).assign(h=[2.0], h_low=[1.0], h_high=[4.0])
    ax = plotting.regimes(points, y="h", ylabel="height")
    bars = ax.containers[0][2][1].get_segments()[0]  # the second direction: upwards
    assert ax.get_ylabel() == "height" and bars[:, 1].tolist() == [1.0, 4.0]
    ax = plotting.regimes(points.assign(h=np.nan), y="h")
    assert ax.get_legend() is None and not ax.texts
    summary = tables.summarize(results(invented), "test NDCG@10")
    ax = plotting.seed_intervals(summary)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["softmax", "uniform"]
    ax = plotting.by_length(tables.by_length(results(tiny)))
    assert len(ax.get_legend().get_texts()) == 2


# ---- the command line ------------------------------------------------------------------------


def call(*arguments, code=0):
    result = CliRunner().invoke(main, ["study", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_the_quick_study_from_the_first_command_to_the_figure(tmp_path):
    """Worlds, two seeds: the whole way in small."""
    here = ("--grid", "quick", "--results", tmp_path / "results")
    assert "21 of 21 runs to do" in call("run", *here, "--dry-run")
    assert not (tmp_path / "results").exists()
    done = call("run", *here, "--scratch", tmp_path / "runs", "--jobs", "2")
    assert "21 done, 0 before, 0 left to another process, 0 failed" in done
    assert done.endswith("nothing is left\n")
    assert "0 done, 21 before" in call("run", *here, "--scratch", tmp_path / "runs")
    status = call("status", *here)
    assert "world-taste" in status and "missing" not in status
    assert status.endswith("nothing is left\n")
    assert call("table", "missing", *here) == "nothing is missing\n"
    table = call("table", "benchmark", *here)
    assert table.count("±") == 4 * 6 and "missing" not in table
    regimes = call("table", "regimes", *here, "--format", "csv").strip().splitlines()
    assert len(regimes) == 4 and ",," not in "".join(regimes)
    call("plot", "regimes", *here, "--output", tmp_path / "regimes.svg")
    assert "published" in (tmp_path / "regimes.svg").read_text()


def test_the_command_line_says_what_it_cannot_do(tmp_path):
    assert "not NAME=VALUE" in call("run", "--only", "beauty", code=2)
    assert "there are" in call("run", "--only", "dataset=beuaty", code=1)
    assert "no grid nothing" in call("run", "--grid", "nothing", code=1)
    assert "no such record" in call("plot", "curves", "--results", tmp_path, code=1)


@pytest.mark.parametrize("command", [
    "run --dry-run", "status", "table benchmark", "table effects", "table regimes",
    "table missing", "plot curves", "plot length",
])  # fmt: skip
def test_every_command_refuses_runs_that_are_not_there(command, tmp_path):
    for only, words in {
        "foo=1": "runs have no 'foo'",
        "dataset=beuty": "no run has dataset=beuty; there are ",
        "seed=x": "no run has seed=x; there are 0, 1",
    }.items():
        assert words in call(*command.split(), "--only", only, "--results", tmp_path, code=1)


def test_neither_jobs_nor_threads_can_be_none():
    for option in ("--jobs", "--threads"):
        assert "x>=1" in call("run", "--dry-run", option, "0", code=2)


@pytest.fixture(scope="module")
def two_worlds(tmp_path_factory):
    """A grid of two worlds and its records, and one record more that is not of the grid."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "grid.toml").write_text("""
        config = {max_len = 8, dim = 8, epochs = 1, data = {num_users = 40, num_items = 20}}
        runs = [{datasets = ["world-markov", "world-taste"], attentions = ["softmax", "uniform"]}]
    """)
    other = load_grid(with_runs({"variant": "other"}, seeds=[0]))
    runs = load_grid(folder / "grid.toml")
    run_grid([*runs, *other], results=folder / "results", scratch=folder / "runs")
    return "--grid", folder / "grid.toml", "--results", folder / "results"


@pytest.mark.parametrize("kind", ["benchmark", "effects", "regimes", "missing"])
def test_a_table_is_of_the_runs_that_are_meant(two_worlds, kind, tmp_path):
    here = [*two_worlds, *(["--results", tmp_path] if kind == "missing" else [])]
    text = call("table", kind, *here)
    assert "markov" in text and "taste" in text and "other" not in text
    text = call("table", kind, *here, "--only", "dataset=world-taste")
    assert "taste" in text and "markov" not in text


def test_a_record_made_with_other_settings_is_in_no_table(two_worlds, tmp_path):
    grid = tmp_path / "wider.toml"
    grid.write_text(two_worlds[1].read_text().replace("dim = 8", "dim = 12"))
    for kind in ("benchmark", "effects"):
        text = call("table", kind, "--grid", grid, *two_worlds[2:])
        assert "missing" in text and "0 of 1" in text and "1 of 1" not in text


@pytest.mark.parametrize("kind", ["effects", "regimes"])
def test_a_comparison_without_a_record_is_printed_with_its_commands(two_worlds, kind, tmp_path):
    text = call("table", kind, *two_worlds, "--results", tmp_path)
    assert text.count("runs missing") == text.count("0 of 1") == 2 and "NaN" not in text
    commands = text.partition("\nmissing:\n")[2].splitlines()
    assert all(line.startswith("python -m seqrec_lib study run --grid") for line in commands)
    assert [line.partition("dataset=world-")[2].split()[0] for line in commands] == [
        "markov", "taste",
    ]  # fmt: skip
    for there in (text, call("table", kind, *two_worlds)):
        assert ("missing" in there) == (there is text)
    assert "study run" in call("table", kind, *two_worlds, "--results", tmp_path, "--format", "csv")
    said = call("table", kind, *two_worlds, "--only", "attention=softmax", code=1)
    assert "none of these runs is softmax with uniform beside it" in said


def test_a_line_by_length_is_of_one_setting(two_worlds, tmp_path):
    here = [*two_worlds, "--output", tmp_path / "x.svg"]
    said = call("plot", "length", *here, code=1)
    assert "more than one dataset," in said and said.strip().endswith("--only dataset=world-markov")
    call("plot", "length", *here, "--only", "dataset=world-taste")
    assert (tmp_path / "x.svg").exists()


def test_help_names_every_command():
    text = call("--help")
    assert all(name in text for name in ("run", "status", "table", "plot", "--grid quick"))


# ---- last, for it breaks the pool that the tests above share ---------------------------------


def kills_itself(job):
    """Stands in for a run that the system ends, for its memory say."""
    (run,) = job
    if run.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return [Outcome(run, "done")]


def test_a_killed_worker_costs_its_own_run_alone(tmp_path):
    jobs = [(Run("world-markov", seed=seed),) for seed in range(4)]
    outcomes = list(spread(kills_itself, jobs, 2, "loky", Scratch(tmp_path)))
    assert sorted(o.run.seed for o in outcomes) == [0, 1, 2, 3]
    assert {o.run.seed: o.status for o in outcomes if o.status != "done"} == {1: "failed"}
    (note,) = tmp_path.glob("*.failed.txt")
    assert "seed1" in note.name and "was it out of memory?" in note.read_text()


def test_a_killed_worker_of_a_cluster_costs_its_own_run_alone(tmp_path):
    distributed = pytest.importorskip("distributed")
    import dask

    once = {"distributed.scheduler.allowed-failures": 0}
    jobs = [(Run("world-markov", seed=seed),) for seed in range(4)]
    with (
        dask.config.set(once),
        distributed.Client(n_workers=1, threads_per_worker=1, dashboard_address=None),
    ):
        ends = {
            end.run.seed: end for end in spread(kills_itself, jobs, 1, "dask", Scratch(tmp_path))
        }
    assert {seed: end.status for seed, end in ends.items()} == {
        0: "done", 1: "failed", 2: "done", 3: "done",
    }  # fmt: skip
    assert "died" in ends[1].detail


def test_a_refit_learns_the_validation_items_and_validates_on_nothing():
    blocks = {"splits": ["leave-one-out-refit"], "attentions": ["awrsr-additive"], "seeds": [0]}
    (run,) = load_grid(with_runs(blocks))
    record = run_one(run)
    assert record["users"] == {"training": 80, "validation": 0, "test": 80}
    assert record["validation"] == {} and record["test"].keys() >= {"HR@10", "NDCG@10"}
    assert record["best_epoch"] == record["epochs"] == 3  # nothing chose an earlier one
    assert "refinement-by-position" in record["swapped"]
    (usual,) = load_grid(with_runs({**blocks, "splits": ["leave-one-out"]}))
    assert run_one(usual)["curve"]["loss"] != record["curve"]["loss"]


def test_the_record_of_a_refit_is_read_with_the_others(tmp_path):
    blocks = {"splits": ["leave-one-out-refit", "leave-one-out"], "seeds": [0]}
    run_grid(load_grid(with_runs(blocks)), results=tmp_path / "results", scratch=tmp_path)
    table = results(tmp_path / "results").set_index("split")
    assert np.isnan(table.loc["leave-one-out-refit", "validation NDCG@10"])
    assert table.loc["leave-one-out", "validation NDCG@10"] > 0


def test_a_try_differs_from_the_study_s_own_run_in_one_setting():
    own = {run.dataset: run.config for run in load_grid("main")
           if (run.attention, run.variant, run.split) == ("softmax", "main", "leave-one-out")
           and run.loss == "ce"}  # fmt: skip
    tries = load_grid("tuning")
    assert tries
    for run in tries:
        differing = [name for name, value in run.config.items() if own[run.dataset][name] != value]
        assert len(differing) == 1, (run.key, differing)


def test_what_a_weighting_chose_for_itself_is_planned_with_all_seeds():
    """One seed of each candidate makes the choice; a grid that stops there has not followed it."""
    runs = load_grid("main")
    candidates = {"main", "slower"} | {r.variant for r in runs if r.variant.startswith("dropout-")}
    table = chosen(sorted(candidates), dataset=["beauty", "ml-1m"], split="leave-one-out",
                   model="sasrec", loss="ce",
                   attention=["softmax", "uniform", "awrsr-additive", "positional"])  # fmt: skip
    assert len(table) == 8
    for (dataset, split, model, attention, loss), row in table.iterrows():
        axes = (dataset, split, model, attention, loss, row["variant"])
        planned = {r.seed for r in runs if tuple(r.axes[name] for name in tables.SETTING) == axes}
        assert planned == set(range(5)), f"{axes} was chosen; main.toml must plan all its seeds"


def test_the_study_needs_neither_a_notebook_nor_what_downloads(tmp_path):
    """On a machine that is lent for minutes there is torch, and no time to install."""
    code = """
import runpy, sys
for name in "IPython ipykernel ipywidgets nbformat nbclient myst_nb pooch dask distributed".split():
    sys.modules[name] = None
sys.argv[1:] = ["study", "run", "--grid", "quick", "--only", "dataset=world-markov",
                "--only", "model=markov", "--results", "records", "--scratch", "runs"]
runpy.run_module("seqrec_lib", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "records").rglob("*.json")]) == 1
