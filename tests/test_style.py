"""The style of the code and of the chapters' cells, as `make lint` checks it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "arguments",
    [["check", "."], ["format", "--check", "seqrec_lib", "tests", "tools", "benchmarks"]],
    ids=lambda arguments: arguments[0],
)
def test_ruff_finds_nothing(arguments):
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
