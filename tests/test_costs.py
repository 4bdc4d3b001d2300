"""Costs: counts against closed forms, and the memory counter against sizes known beforehand."""

import numpy as np
import pytest
import torch

import seqrec_lib as sr
from seqrec_lib.analysis.costs import _Alive

B, D, BLOCKS = 4, 8, 2


def table(attention=None, length=10, num_items=100, **settings):
    settings = {
        "batch_size": B,
        "dim": D,
        "num_blocks": BLOCKS,
        "seconds": 0,
        "device": "cpu",
        **settings,
    }
    return sr.costs(attention, length, num_items, **settings)


def test_a_row_for_every_combination():
    rows = table(["softmax", {"name": "awrsr-simple", "width": 3}], [5, 10], [50, 100])
    assert len(rows) == 8 and not rows.drop(columns="milliseconds").isna().any(axis=None)
    assert rows["milliseconds"].isna().all()
    assert set(table(model="STOSA")["attention"]) == set(sr.WEIGHTINGS)
    assert set(sr.WEIGHTINGS) - set(table()["attention"]) == {"wasserstein", "awrsr-stochastic"}


def test_parameters_are_those_of_the_definitions():
    n, rows = 10, table(model="STOSA", num_heads=2).set_index("attention")
    own = {
        "softmax": 0,
        "wasserstein": 0,
        "uniform": 0,
        "shuffled": 0,
        "random": 0,
        "last": 0,
        "recency": 2,
        "positional": n * n,
        "softmax-positional": n * n,
        "awrsr-simple": 2 * n * n,
        "awrsr-value": 3 * n * n,
        "awrsr-additive": 3 * n * n,
        "awrsr-stochastic": 4 * n * n,
    }
    assert rows["attention_parameters"].to_dict() == {k: BLOCKS * v for k, v in own.items()}
    rest = rows["parameters"] - rows["attention_parameters"]
    assert rest.nunique() == 1
    model = sr.STOSA(100, max_len=n, dim=D, num_blocks=BLOCKS, num_heads=2)
    assert rest.iloc[0] == sum(p.numel() for p in model.parameters())


def test_operations_are_those_of_the_matrix_products():
    n = 10
    flop = table(["softmax", "uniform", "awrsr-simple"]).set_index("attention")["gflop"] * 1e9
    # Each product costs 2 I J K, and twice that again in the backward pass.
    simple = 3 * 3 * 2 * B * n**3  # T W_q, T W_k, and their product
    assert flop["awrsr-simple"] - flop["softmax"] == pytest.approx(BLOCKS * simple)
    # Uniform has no scores: no queries, no keys, no product of them, no gradient of the weights.
    scores = 3 * 2 * (2 * B * n * D * D + B * n * n * D) + 2 * B * n * n * D
    assert flop["softmax"] - flop["uniform"] == pytest.approx(BLOCKS * scores)
    # A larger catalogue costs in the loss alone, whose three products are the queries' and
    # items' scores and their gradients.
    catalogue = table("softmax", num_items=[100, 300])["gflop"] * 1e9
    assert catalogue.diff()[1] == pytest.approx(3 * 2 * B * n * D * 200)


def test_memory_counts_tensors_alive_at_once():
    with _Alive() as alive:
        x = torch.zeros(1000)
        y = x + 1  # 8000 bytes
        del x
        z = torch.zeros(500)  # 6000
        view, again = y.view(10, 100), y.add_(1)  # nothing new
        w = torch.cat([y, z])  # 12000
        del view, again, y, z
        torch.zeros(1000).sum()  # 6000 + 4000
    assert alive.peak == 12_000
    assert alive.bytes == w.numel() * 4
    del w
    assert alive.bytes == 0


def test_memory_grows_with_the_square_of_the_length():
    peak = table("softmax", [200, 400])["peak_mb"]
    # The part that is linear in the length falls out of this difference.
    weights = B * (400**2 - 2 * 200**2) * 4 / 1e6  # one map of weights
    assert peak[1] - 2 * peak[0] > weights
    assert table("uniform", 200)["peak_mb"][0] < peak[0] < table("awrsr-simple", 200)["peak_mb"][0]


def test_counts_are_the_same_every_time_and_steps_are_timed():
    one, two = table("awrsr-value", seconds=0.01), table("awrsr-value", seconds=0.01)
    counted = one.columns.drop("milliseconds")
    assert one[counted].equals(two[counted])
    assert np.isfinite(one["milliseconds"][0]) and one["milliseconds"][0] > 0


def test_an_unknown_model_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="no model is called 'sasrec'; there are: SASRec, STOSA"):
        table(model="sasrec")
