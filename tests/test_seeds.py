"""Several seeds in one batched model: each is the run it would have been alone."""

import numpy as np
import pytest
import torch

import seqrec_lib as sr
from seqrec_lib.training.seeds import fit_seeds

SPLIT = sr.leave_one_out(sr.worlds.series(num_users=150, num_items=40, num_genres=4, length=12))


def models(seeds, **options):
    options = {"max_len": 10, "dim": 8, "num_heads": 2, "dropout": 0.0} | options
    return [sr.SASRec(SPLIT.num_items, seed=seed, **options).double() for seed in seeds]


@pytest.mark.parametrize("attention, loss", [
    ("softmax", "ce"), ("softmax", "bce"), ("uniform", "ce"), ("awrsr-additive", "ce"),
    ("shuffled", "ce"), ("recency", "ce"), ("positional", "ce"),
])  # fmt: skip
def test_each_seed_is_the_run_it_would_have_been_alone(attention, loss):
    # bce draws its negatives from one generator for all seeds: only one seed can be compared.
    seeds = [3, 4, 5] if loss == "ce" else [3]
    together, alone = (models(seeds, attention=attention) for _ in range(2))
    options = {"epochs": 4, "batch_size": 32, "lr": 1e-2, "progress": False, "device": "cpu"}
    found = fit_seeds(together, SPLIT, loss, seeds=seeds, **options)  # 4 x 5 = 20 steps
    for seed, a, b, history in zip(seeds, together, alone, found, strict=True):
        expected = sr.fit(b, SPLIT, loss, seed=seed, **options)
        np.testing.assert_allclose(history.column("loss"), expected.column("loss"), rtol=1e-5)
        assert history.column("NDCG@10") == pytest.approx(expected.column("NDCG@10"), abs=1e-9)
        for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9, msg=name)


def test_with_dropout_it_is_the_same_in_distribution():
    seeds = list(range(8))
    options = {"epochs": 3, "batch_size": 32, "lr": 1e-2, "progress": False, "device": "cpu"}
    together, alone = (models(seeds, dropout=0.3) for _ in range(2))
    a = [
        history.column("loss")[-1] for history in fit_seeds(together, SPLIT, seeds=seeds, **options)
    ]
    b = [
        sr.fit(model, SPLIT, seed=seed, **options).column("loss")[-1]
        for seed, model in zip(seeds, alone, strict=True)
    ]
    assert len(set(a)) == len(seeds)
    # the mean differs by less than four standard errors of a paired difference
    difference = np.subtract(a, b)
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / np.sqrt(len(seeds)) + 1e-6
    without = fit_seeds(models(seeds), SPLIT, seeds=seeds, **options)
    assert np.mean(a) > np.mean([history.column("loss")[-1] for history in without])


def test_each_seed_stops_by_itself_at_its_own_best_epoch():
    seeds = [0, 1, 2]
    options = {
        "epochs": 12,
        "patience": 2,
        "batch_size": 32,
        "lr": 3e-2,
        "progress": False,
        "device": "cpu",
    }
    together, alone = models(seeds), models(seeds)
    for a, b, history, seed in zip(
        together, alone, fit_seeds(together, SPLIT, seeds=seeds, **options), seeds, strict=True
    ):
        expected = sr.fit(b, SPLIT, seed=seed, **options)
        assert len(history) == len(expected) and history.stopped == expected.stopped
        assert history.best_epoch == expected.best_epoch
        torch.testing.assert_close(a.items.weight, b.items.weight, rtol=1e-6, atol=1e-8)


def test_what_cannot_be_trained_as_one_is_refused():
    with pytest.raises(ValueError, match="as many seeds"):
        fit_seeds(models([0, 1]), SPLIT, seeds=[0])
    with pytest.raises(ValueError, match="one configuration"):
        fit_seeds([*models([0]), *models([1], dim=16)], SPLIT, seeds=[0, 1])
    with pytest.raises(ValueError, match="no loss is called"):
        fit_seeds(models([0]), SPLIT, "hinge", seeds=[0])
