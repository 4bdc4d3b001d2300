"""SASRec here and in other libraries, side by side: seconds per epoch on the same log.

    python benchmarks/bench_peers.py [--datasets beauty ml-1m] [--peers rectools recbole]

Width 64, two blocks, one head, dropout 0.2, cross-entropy over all items, batches of 128, float32
(and bfloat16 here). Each peer runs from the package index in an environment of its own, made on
first use under ``.benchmarks/``; a driver for each is in ``benchmarks/peers/``.

Whole epochs of the library are timed. Peers take minutes an epoch, so their steps are timed one
by one, up to ``--steps`` and ``--seconds``, and an epoch is the fast half's mean times the number
of steps ("extrapolated"): their batches are padded to one length, so steps cost alike, and the
slow half is where the machine was disturbed. RecBole's batch holds 128 *prefixes*, each a sample
with one target; RecTools' and the library's 128 users, every position a target.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import venv
from pathlib import Path

import numpy as np
from _common import (
    ROOT,
    arguments,
    floor_operations,
    floor_seconds,
    in_fresh_process,
    matrix_rates,
    positions,
    precisions,
    report,
)
from bench_training import LENGTH, load, train

import seqrec_lib as sr

PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".benchmarks"


def environment(peer: str) -> Path:
    """The Python of the peer's environment, made and filled where it is not there yet."""
    home = ENVIRONMENTS / peer
    ready, python = home / "ready", home / "bin" / "python"
    if not ready.exists():
        print(f"installing {peer} into {home.relative_to(ROOT)} ...", flush=True)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement",
                        PEERS / f"{peer}.txt"], check=True)  # fmt: skip
        ready.touch()
    return python


def time_peer(peer: str, log: sr.Interactions, length: int, options) -> dict:
    """What the peer's driver answers."""
    events = log.sequences
    job = {"length": length, "dim": 64, "batch": 128, "steps": options.steps,
           "seconds": options.seconds, "threads": options.threads}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.tsv"
        table = np.stack([events.owner + 1, events.values, events.position + 1], 1)
        np.savetxt(file, table, fmt="%d", delimiter="\t")
        command = [environment(peer), PEERS / f"{peer}_sasrec.py", file, "--folder", folder]
        command += [part for name, value in job.items() for part in (f"--{name}", str(value))]
        quiet = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=quiet,
                              cwd=folder)  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    options = arguments(__doc__, datasets=list(LENGTH), peers=["rectools", "recbole"], steps=100,
                        seconds=60.0)  # fmt: skip
    options.steps = 4 if options.tiny else options.steps
    for dataset in options.datasets:
        compare(dataset, options)


def compare(dataset: str, options) -> None:
    users, length = (300 if options.tiny else None), LENGTH[dataset]
    log = load(dataset, users)
    split = sr.leave_one_out(log)
    lengths = positions(split, length)
    operations = floor_operations(lengths, split.num_items, 64, 2)
    rates, rows = [matrix_rates()], []
    for precision in precisions():
        seconds, mib = in_fresh_process(train, dataset, precision, options.repeats, users)
        rows.append({"program": f"seqrec_lib, {precision}", "seconds": seconds,
                     "how": f"fastest of {options.repeats} epochs", "targets": int(lengths.sum()),
                     "peak_mib": mib})  # fmt: skip
    for peer in options.peers:
        found = time_peer(peer, log, length, options)
        fast = sorted(found["seconds"][1:])  # the first step warms up
        fast = fast[: -(-len(fast) // 2)]
        of = found["steps_per_epoch"]
        rows.append({"program": f"{peer} {found['version']}", "seconds": np.mean(fast) * of,
                     "how": f"extrapolated from {len(found['seconds'])} of {of} steps",
                     "targets": found["targets"], "peak_mib": found["peak_mib"]})  # fmt: skip
    rates.append(matrix_rates())
    rows += [{"program": f"floor, {name}", "seconds": floor_seconds(operations, rates, name),
              "how": f"{sum(operations) / 1e9:,.0f} Gflop", "targets": int(lengths.sum())}
             for name in precisions()]  # fmt: skip
    ours, floor = rows[0]["seconds"], rows[-len(precisions())]["seconds"]
    for row in rows:
        row["to_floor"] = row["seconds"] / floor
        row["to_ours"] = row["seconds"] / ours
    report(f"peers-{dataset}", options, rows, dataset=dataset, length=length,
           items=split.num_items, gflop=sum(operations) / 1e9)  # fmt: skip


if __name__ == "__main__":
    main()
