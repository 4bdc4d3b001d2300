"""How long, and how much memory: a log of twenty million rows, and MovieLens-1M from the cache.

    python benchmarks/bench_data.py [--rows 20000000]

A log is generated in Parquet (text ids for users, a popularity curve over items, rows in no
order), then read, filtered to its 5-core and split, in a process of its own whose peak memory is
the one reported. MovieLens-1M is measured where ``$SEQREC_DATA`` or the cache holds it.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from _common import arguments, peak_mib, report


def generate(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    num_users, num_items = rows // 100, max(rows // 400, 10)
    users = pa.array(
        (rng.beta(0.8, 6, rows) * num_users).astype(np.int32)
    )  # some heavy, most light
    names = pa.array([f"user-{i:08d}" for i in range(num_users)])
    table = pa.table({
        "user": pa.DictionaryArray.from_arrays(users, names).cast(pa.string()),
        "item": (rng.beta(0.4, 4, rows) * num_items).astype(np.int64) * 17,
        "timestamp": rng.integers(1_500_000_000, 1_600_000_000, rows),
    })  # fmt: skip
    pq.write_table(table, path)


def read_filter_split(path: Path) -> list[dict]:
    import seqrec_lib.data as data

    steps, start = [], time.perf_counter()

    def done(what: str) -> None:
        nonlocal start
        seconds = time.perf_counter() - start
        steps.append({"step": what, "seconds": seconds, "peak_mib": peak_mib()})
        start = time.perf_counter()

    inter = data.read_interactions(path, "user", "item", "timestamp", title=False)
    done(f"read {inter.num_interactions:,} rows from Parquet")
    inter = inter.k_core(5)
    done(f"5-core ({inter.num_users:,} users, {inter.num_items:,} items)")
    split = data.leave_one_out(inter)
    done(f"leave-one-out ({len(split.test):,} test users)")
    del split
    split = data.global_temporal(inter)
    done(f"global temporal ({len(split.test):,} test users)")
    return steps


def load_ml_1m() -> list[dict]:
    import seqrec_lib.data as data

    steps = []
    for what in ("MovieLens-1M, first load (or cached)", "MovieLens-1M from the cache"):
        start = time.perf_counter()
        data.load_dataset("ml-1m")
        seconds = time.perf_counter() - start
        steps.append({"step": what, "seconds": seconds, "peak_mib": peak_mib()})
    return steps


def main() -> None:
    options = arguments(__doc__, repeats=1, rows=20_000_000)
    rows = 20_000 if options.tiny else options.rows
    # a fresh process for each part, so that its peak memory is its own
    pool = ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    )
    with pool, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.parquet"
        pool.submit(generate, path, rows).result()
        steps = pool.submit(read_filter_split, path).result()
        try:
            steps += pool.submit(load_ml_1m).result()
        except FileNotFoundError as error:
            print(f"MovieLens-1M not measured: {str(error).splitlines()[0]}")

    report("data", options, steps, log_rows=rows)


if __name__ == "__main__":
    main()
