"""Several seeds in one batched model: each is the run it would have been alone."""

import contextlib
import types

import numpy as np
import pytest
import torch

import seqrec_lib as sr
from seqrec_lib.training import loop
from seqrec_lib.training import seeds as stacking
from seqrec_lib.training.seeds import fit_seeds

SPLIT = sr.leave_one_out(sr.worlds.series(num_users=150, num_items=40, num_genres=4, length=12))


def models(seeds, **options):
    options = {"max_len": 10, "dim": 8, "num_heads": 2, "dropout": 0.0} | options
    return [sr.SASRec(SPLIT.num_items, seed=seed, **options).double() for seed in seeds]


@pytest.mark.parametrize("attention, loss", [
    ("softmax", "ce"), ("softmax", "sampled_ce"), ("softmax", "bce"), ("softmax", "bpr"),
    ("uniform", "ce"), ("awrsr-additive", "ce"), ("shuffled", "ce"), ("recency", "ce"),
    ("positional", "ce"), ("softmax-positional", "ce"),
])  # fmt: skip
def test_each_seed_is_the_run_it_would_have_been_alone(attention, loss):
    seeds = [3, 4, 5]
    together, alone = (models(seeds, attention=attention) for _ in range(2))
    options = {"epochs": 4, "batch_size": 32, "lr": 1e-2, "progress": False, "device": "cpu"}
    found = fit_seeds(together, SPLIT, loss, seeds=seeds, **options)  # 4 x 5 = 20 steps
    for seed, a, b, history in zip(seeds, together, alone, found, strict=True):
        expected = sr.fit(b, SPLIT, loss, seed=seed, **options)
        for name in ("loss", "gradient", "longest gradient"):
            np.testing.assert_allclose(history.column(name), expected.column(name), rtol=1e-5)
        assert history.column("NDCG@10") == pytest.approx(expected.column("NDCG@10"), abs=1e-9)
        for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9, msg=name)


def test_seeds_drop_entries_of_their_own():
    """Two copies of one model with the same batches: only dropout can tell them apart."""
    for dropout, alike in ((0.0, True), (0.5, False)):
        twins = models([3, 3], dropout=dropout)
        fit_seeds(twins, SPLIT, seeds=[3, 3], epochs=1, batch_size=32, progress=False, device="cpu")
        assert torch.equal(*(model.items.weight for model in twins)) == alike


def test_each_seed_s_gradient_is_shortened_by_its_own_length():
    seeds = [3, 4, 5]
    together, alone, unclipped = (models(seeds) for _ in range(3))
    options = {"epochs": 2, "batch_size": 32, "lr": 1e-2, "progress": False, "device": "cpu"}
    clipped = {**options, "clip_norm": 0.34}  # longer than some gradients, shorter than others
    fit_seeds(together, SPLIT, seeds=seeds, **clipped)
    fit_seeds(unclipped, SPLIT, seeds=seeds, **options)
    for seed, a, b, c in zip(seeds, together, alone, unclipped, strict=True):
        sr.fit(b, SPLIT, seed=seed, **clipped)
        for (name, x), y, z in zip(
            a.named_parameters(), b.parameters(), c.parameters(), strict=True
        ):
            torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9, msg=name)
            assert not torch.equal(x, z), name


def test_scores_of_all_models_at_once_change_nothing(monkeypatch):
    """As on a GPU, against one loss after the other."""
    options = {"seeds": [0, 1, 2], "epochs": 2, "batch_size": 32, "progress": False}
    found = []
    for at_once in (False, True):
        monkeypatch.setattr(stacking, "_afford_scores", lambda *_, at_once=at_once: at_once)
        made = models(options["seeds"])
        histories = fit_seeds(made, SPLIT, device="cpu", **options)
        found.append((made, [history.column("loss") for history in histories]))
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)
    for a, b in zip(found[0][0], found[1][0], strict=True):
        for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9, msg=name)


def test_a_gpu_holds_the_scores_that_leave_room_for_other_jobs(monkeypatch):
    class Known(list):
        device = torch.device("cuda:0")

    def afford(positions, num_items):
        known = [Known(range(positions)), *([Known(range(positions // 2))] * 4)]
        return stacking._afford_scores(known, num_items)

    gpu = types.SimpleNamespace(total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda where: gpu)
    assert afford(128 * 50, 3_416) and not afford(128 * 50, 20_033)  # 1.3 and 7.7 GB
    gpu.total_memory = 80 * 2**30
    assert afford(128 * 50, 20_033) and not afford(128 * 200, 20_033)
    assert not stacking._afford_scores([torch.zeros(2, 3)], 1)  # a CPU has a cache to think of


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_learns_what_a_cpu_does():
    found = []
    for device in ("cpu", "cuda"):
        made = models([0, 1])
        options = {"epochs": 3, "patience": 1, "batch_size": 32, "progress": False}
        found.append(fit_seeds(made, SPLIT, seeds=[0, 1], device=device, **options))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a.column("loss"), b.column("loss"), rtol=1e-6)


def test_stosa_too():
    together, alone = (
        sr.STOSA(SPLIT.num_items, max_len=10, dim=8, dropout=0.0, seed=0).double() for _ in range(2)
    )
    options = {"epochs": 2, "batch_size": 32, "progress": False, "device": "cpu"}
    fit_seeds([together], SPLIT, "bpr", seeds=[0], **options)
    sr.fit(alone, SPLIT, "bpr", seed=0, **options)
    for (name, x), y in zip(together.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("attention", ["softmax", "awrsr-additive", "wasserstein"])
def test_as_on_a_gpu_with_everything_in_mixed_precision(attention, monkeypatch):
    """On a CPU only the loss takes it, so the way of a GPU is gone here."""
    kind, loss = (sr.STOSA, "bpr") if attention == "wasserstein" else (sr.SASRec, "ce")
    sizes = {"max_len": 10, "dim": 8, "num_heads": 2, "attention": attention}
    runs = []
    for mixed in (True, False):
        if mixed:
            way = lambda where, precision: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
            monkeypatch.setattr(loop, "_mixed", way)
            monkeypatch.setattr(stacking, "_afford_scores", lambda *_: True)
        made = [kind(SPLIT.num_items, **sizes, seed=seed) for seed in (0, 1)]
        options = {"epochs": 2, "batch_size": 32, "progress": False, "device": "cpu"}
        runs.append(fit_seeds(made, SPLIT, loss, seeds=[0, 1], **options))
        monkeypatch.undo()
    for a, b in zip(*runs, strict=True):
        assert a.column("loss") != b.column("loss")
        np.testing.assert_allclose(a.column("loss"), b.column("loss"), rtol=0.02)


def test_scores_at_once_are_precise_where_the_readout_has_a_bias():
    class Biased(sr.SASRec):
        def readout(self):
            return self.items.weight, self.items.weight.square().sum(-1)

    for kind in (Biased, sr.SASRec):
        learner = stacking.Stacked([kind(9, dim=8, seed=seed) for seed in (0, 1)])
        asked = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.long)
        exact = learner._cross_entropies(*asked)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(learner._cross_entropies(*asked), exact) == (kind is Biased)


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


@pytest.mark.parametrize(
    ("attention", "frozen"), [("softmax", False), ("softmax", True), ("uniform", False)]
)
def test_each_seed_stops_by_itself_at_its_own_best_epoch(attention, frozen):
    """Queries and keys of uniform weights never have a gradient, nor has what is frozen."""
    seeds = [0, 1, 2]
    options = {
        "epochs": 12,
        "patience": 1,
        "batch_size": 32,
        "lr": 3e-2,
        "progress": False,
        "device": "cpu",
    }
    together, alone = models(seeds, attention=attention), models(seeds, attention=attention)
    for model in [*together, *alone]:
        model.items.weight.requires_grad_(not frozen)
    histories = fit_seeds(together, SPLIT, seeds=seeds, **options)
    assert len({len(history) for history in histories}) > 1  # so one went on without another
    for a, b, history, seed in zip(together, alone, histories, seeds, strict=True):
        expected = sr.fit(b, SPLIT, seed=seed, **options)
        assert len(history) == len(expected) and history.stopped == expected.stopped
        assert history.best_epoch == expected.best_epoch
        for mine, other in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


def test_each_seed_needs_a_model_of_its_own():
    (model,) = models([0])
    with pytest.raises(ValueError, match="each needs a model of its own"):
        fit_seeds([model] * 3, SPLIT, seeds=[0, 1, 2], device="cpu")


def test_models_may_come_in_either_mode():
    """As when one of them was evaluated before."""
    options = {"seeds": [0, 1], "epochs": 1, "progress": False, "device": "cpu"}
    mixed, fresh = models([0, 1]), models([0, 1])
    mixed[1].eval()
    for a, b in zip(*(fit_seeds(made, SPLIT, **options) for made in (mixed, fresh)), strict=True):
        assert a.column("loss") == b.column("loss")


CUT = dict(seeds=[0, 1, 2], epochs=12, patience=2, batch_size=32, lr=3e-2, loss="bce", warmup=3,
           schedule="cosine", progress=False, device="cpu")  # fmt: skip


def test_a_run_cut_short_goes_on_and_ends_with_the_same_weights(tmp_path):
    """Bit for bit, dropout and negatives included, before and after a seed has stopped."""
    whole = models(CUT["seeds"], dropout=0.2)
    expected = fit_seeds(whole, SPLIT, **CUT)
    lengths = sorted(len(history) for history in expected)
    assert lengths[0] + 1 < lengths[-1]  # one stops, and the others go on for a while
    began = []
    for last in (1, lengths[0], lengths[0] + 1, None):
        epochs = []

        def on_epoch(which, entry, last=last, epochs=epochs):
            epochs.append(entry["epoch"])
            if entry["epoch"] == last:
                raise KeyboardInterrupt

        again = models(CUT["seeds"], dropout=0.2)
        with contextlib.suppress(KeyboardInterrupt):
            found = fit_seeds(
                again, SPLIT, checkpoint=tmp_path / "run.pt", on_epoch=on_epoch, **CUT
            )
        began.append(epochs[0])
    assert began == [1, 2, lengths[0] + 1, lengths[0] + 2]
    for a, b, history, other in zip(whole, again, expected, found, strict=True):
        assert history.column("loss") == other.column("loss")
        assert history.stopped == other.stopped
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(x, y)


def test_a_run_extended_past_the_epoch_that_stopped_a_seed_ends_with_the_same_weights(tmp_path):
    """That epoch was the last: the optimizer goes on with the rows of the others."""
    options = CUT | {"schedule": "constant", "epochs": 30}
    whole, again = (models(CUT["seeds"]) for _ in range(2))
    expected = fit_seeds(whole, SPLIT, **options)
    first = min(len(history) for history in expected)
    assert [len(history) for history in expected].count(first) < 3
    fit_seeds(again, SPLIT, checkpoint=tmp_path / "run.pt", **options | {"epochs": first})
    again = models(CUT["seeds"])
    found = fit_seeds(again, SPLIT, checkpoint=tmp_path / "run.pt", **options)
    for a, b, history, other in zip(whole, again, expected, found, strict=True):
        assert history.column("loss") == other.column("loss")
        assert all(map(torch.equal, a.parameters(), b.parameters()))


def test_the_checkpoint_of_other_seeds_is_refused(tmp_path):
    options = {"epochs": 1, "progress": False, "device": "cpu", "checkpoint": tmp_path / "run.pt"}
    fit_seeds(models([0, 1]), SPLIT, seeds=[0, 1], **options)
    with pytest.raises(ValueError, match=r"seeds: \[0, 1\] there, \[0, 2\] here"):
        fit_seeds(models([0, 2]), SPLIT, seeds=[0, 2], **options)
    with pytest.raises(ValueError, match="seed: None there, 0 here"):
        sr.fit(*models([0]), SPLIT, seed=0, **options)


def test_a_seed_that_diverges_is_named_and_all_models_are_good():
    both = models([0, 1])
    with torch.no_grad():
        both[1].positions.fill_(torch.inf)
    with pytest.raises(sr.TrainingDiverged, match="seed 7: the loss is nan at epoch 1, step 1"):
        fit_seeds(both, SPLIT, seeds=[4, 7], epochs=1, progress=False, device="cpu")
    assert torch.equal(both[0].items.weight, models([0])[0].items.weight)


def test_what_cannot_be_trained_as_one_is_refused():
    with pytest.raises(ValueError, match="as many seeds"):
        fit_seeds(models([0, 1]), SPLIT, seeds=[0])
    with pytest.raises(ValueError, match="one configuration"):
        fit_seeds([*models([0]), *models([1], dim=16)], SPLIT, seeds=[0, 1])
    with pytest.raises(ValueError, match="a parameter twice"):
        (tied,) = models([0])
        tied.blocks[0].norm_attention = tied.norm
        fit_seeds([tied], SPLIT, seeds=[0])
    with pytest.raises(ValueError, match="no loss is called"):
        fit_seeds(models([0]), SPLIT, "hinge", seeds=[0])
    with pytest.raises(TypeError, match="epoch"):
        fit_seeds(models([0]), SPLIT, seeds=[0], epoch=3)


@pytest.mark.parametrize("change", ["last", sr.RemovePosition(-2), sr.ScaleResidual(0.5)], ids=str)
def test_an_intervention_holds_for_all_models_or_the_training_is_refused(change):
    seeds, options = [0, 1], {"epochs": 2, "batch_size": 32, "progress": False, "device": "cpu"}
    together, alone = models(seeds), models(seeds)
    with contextlib.ExitStack() as under:
        for model in (*together, *alone):
            under.enter_context(sr.intervene(model, change))
        found = fit_seeds(together, SPLIT, seeds=seeds, **options)
        for seed, model, history in zip(seeds, alone, found, strict=True):
            expected = sr.fit(model, SPLIT, seed=seed, **options)
            np.testing.assert_allclose(history.column("loss"), expected.column("loss"), rtol=1e-5)
    one = models(seeds)
    with (
        sr.intervene(one[1], change),
        pytest.raises(ValueError, match="the same interventions"),
    ):
        fit_seeds(one, SPLIT, seeds=seeds, **options)


def test_models_that_read_exchanged_positions_are_refused():
    both, swap = models([0, 1]), sr.SwapPositions(-1, -2)
    with (
        sr.intervene(both[0], swap),
        sr.intervene(both[1], swap),
        pytest.raises(ValueError, match="SwapPositions.*cannot be trained as one"),
    ):
        fit_seeds(both, SPLIT, seeds=[0, 1], epochs=1, progress=False)
