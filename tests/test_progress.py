"""What a study that is under way says of itself: runs still going count, and nothing is torn."""

import io
import json
import time

import pytest

import seqrec_lib as sr
from seqrec_lib.study import runner
from seqrec_lib.study.grid import load_grid
from seqrec_lib.study.progress import Expected, Progress
from seqrec_lib.study.scratch import Scratch

GRID = {
    "seeds": [0, 1, 2, 3],
    "config": {"max_len": 8, "dim": 8, "epochs": 3},
    "datasets": {"world-markov": {"data": {"num_users": 80, "num_items": 20, "length": 8}}},
    "runs": [{"datasets": ["world-markov"]}],
}
RUNS = load_grid(GRID)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def epoch(folder, run, number):
    Scratch(folder).marker(run).write_text(json.dumps({"epoch": number}))


def started(folder, file=None, **settings):
    expected = {run: Expected(100.0, 10.0) for run in RUNS}
    return Progress(expected, Scratch(folder), file=file or Terminal(), **settings)


def test_runs_under_way_count_by_their_epochs(tmp_path):
    progress = started(tmp_path)
    assert progress.done() == 0
    epoch(tmp_path, RUNS[0], 4)
    epoch(tmp_path, RUNS[1], 12)  # more epochs than expected are no more than the whole
    Scratch(tmp_path).marker(RUNS[2]).write_text("{}")  # begun, no epoch yet
    progress.look()
    assert progress.done() == pytest.approx(40 + 100)
    progress.ended(RUNS[0])
    assert progress.done() == pytest.approx(200)
    assert str(progress).startswith("1/4, ")
    progress.ended(RUNS[3], here=False)  # another process has it: there was less to do
    assert str(progress).startswith("1/3, ") and progress.bar.total == 300


def test_a_marker_that_is_being_written_is_read_the_next_time(tmp_path):
    progress = started(tmp_path)
    epoch(tmp_path, RUNS[0], 4)
    progress.look()
    Scratch(tmp_path).marker(RUNS[0]).write_text('{"epo')
    progress.look()
    assert progress.done() == pytest.approx(40)


def test_the_time_left_is_at_the_pace_of_this_command(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("seqrec_lib.study.progress.time.perf_counter", lambda: now[0])
    epoch(tmp_path, RUNS[0], 5)  # of an earlier command: no pace of ours
    progress = started(tmp_path, jobs=2)
    assert progress.seconds_left() == pytest.approx(350 / 2)  # nothing done yet: as expected
    now[0] += 100
    epoch(tmp_path, RUNS[0], 10)
    progress.look()
    assert progress.seconds_left() == pytest.approx(300 * 100 / 50)  # two seconds for each


def test_on_a_terminal_there_is_a_bar_with_the_run_that_is_under_way(tmp_path, monkeypatch):
    monkeypatch.setattr(Progress, "EVERY", 0.01)
    screen = Terminal()
    with started(tmp_path, screen) as progress:
        epoch(tmp_path, RUNS[0], 4)
        epoch(tmp_path, RUNS[1], 2)
        end = time.monotonic() + 10
        while "epoch" not in screen.getvalue():  # the watcher finds it
            assert time.monotonic() < end
    last = screen.getvalue()
    assert " 0/4, " in last and ("epoch 4" in last or "epoch 2" in last)
    assert not progress._watcher.is_alive()


def test_elsewhere_nothing_is_drawn_and_lines_are_said(tmp_path):
    log, said = io.StringIO(), []
    with started(tmp_path, log, say=said.append) as progress:
        progress.say("a line")
    assert said == ["a line"] and log.getvalue() == ""


def test_a_study_shows_it(tmp_path, monkeypatch, capsys):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    report = runner.run_grid(RUNS, results=tmp_path / "results", scratch=tmp_path / "runs")
    assert len(report.done) == 4
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line[:5] for line in lines] == ["[1/4,", "[2/4,", "[3/4,", "[4/4,"]
    assert "%|" in screen.getvalue() and "[4/4, 0 s left]" in lines[-1]
    assert len(sr.results(tmp_path / "results")) == 4
