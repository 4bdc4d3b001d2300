"""Shared by the tests of the data package: random logs, and the folder of real data."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from seqrec_lib.data import Interactions, Ragged

FOLDER = Path(os.environ.get("SEQREC_DATA") or "no-such-folder")


def needs(*paths: str):
    """Skip, saying so, where ``$SEQREC_DATA`` does not hold the files."""
    missing = [path for path in paths if not (FOLDER / path).is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"SEQREC_DATA does not hold {missing}")


@st.composite
def logs(draw, max_users=8, max_items=6, max_length=7, min_users=1):
    """Small logs with timestamps, many of them tied."""
    num_items = draw(st.integers(1, max_items))
    event = st.tuples(st.integers(0, 12), st.integers(1, num_items))
    users = draw(
        st.lists(st.lists(event, max_size=max_length), min_size=min_users, max_size=max_users)
    )
    users = [sorted(events, key=lambda e: e[0]) for events in users]
    return Interactions(
        Ragged.from_lists([[item for _, item in events] for events in users]),
        num_items=num_items,
        timestamps=np.array([time for events in users for time, _ in events], dtype=np.int64),
        user_ids=np.arange(100, 100 + len(users)),
        item_ids=np.arange(num_items + 1) * 10,
    )
