"""The training loop: repeatable, stoppable, killable.

Run as a script, this file trains in processes that are killed; see the test that does so.
"""

import json
import math
import os
import pickletools
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

import seqrec_lib as sr
from seqrec_lib.training import LOSSES, loop
from seqrec_lib.training.batches import Batches, Negatives

SPLIT = sr.leave_one_out(sr.worlds.markov(num_users=60, num_items=20, length=9, seed=3))
FAST = dict(batch_size=16, progress=False, patience=None)


def fresh_model(seed=0, dropout=0.2, **sizes):
    sizes = {"max_len": 8, "dim": 8, "num_blocks": 1} | sizes
    return sr.SASRec(SPLIT.num_items, dropout=dropout, seed=seed, **sizes)


def train(model=None, split=SPLIT, **options):
    model = model or fresh_model()
    history = sr.fit(model, split, **{"epochs": 3, **FAST, **options})
    return model, history


def assert_same_weights(model, other):
    state = other if isinstance(other, dict) else other.state_dict()
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def squared(weights, allowed):
    return weights**2


class Recurrent(torch.nn.Module):
    """A reader's model, with what CONTRIBUTING asks for and nothing else."""

    def __init__(self, num_items, max_len=8, dim=8):
        super().__init__()
        self.num_items, self.max_len = num_items, max_len
        self.items = torch.nn.Embedding(num_items + 1, dim, padding_idx=0)
        self.cell = torch.nn.GRU(dim, dim, batch_first=True)

    def encode(self, items):
        return self.cell(self.items(items))[0]

    def queries(self, encoded):
        return encoded

    def readout(self):
        return self.items.weight, None


def test_a_model_of_one_s_own_is_trained(tmp_path):
    found = []
    for checkpoint in (None, tmp_path / "run.pt"):
        torch.manual_seed(0)
        model, history = train(Recurrent(SPLIT.num_items), lr=1e-2, checkpoint=checkpoint)
        found.append((history.column("loss"), sr.evaluate(model, SPLIT)["NDCG@10"]))
    assert found[0] == found[1] and found[0][0][-1] < found[0][0][0]


# -- what goes in ------------------------------------------------------------------------------


def test_batches_hold_every_user_s_last_events_and_what_came_next():
    sequences = [[5], [], [1, 2], [3, 4, 5, 6, 7, 8], list(range(1, 20))] * 3
    train = sr.Interactions(sequences, num_items=20)
    expected = sorted(
        (user, tuple(s[-5:][:-1]), tuple(s[-5:][1:]))
        for user, s in enumerate(sequences) if len(s) >= 2
    )  # fmt: skip
    batches = Batches(train, max_len=4, batch_size=2, device=torch.device("cpu"))
    found = []
    for batch in batches.epoch(np.random.default_rng(0)):
        owner = batch.real // batch.items.shape[2]
        for row, items in enumerate(batch.items[0]):
            mine = owner == row
            assert batch.users[mine].unique().numel() == 1
            known = tuple(batch.items.flatten()[batch.real[mine]].tolist())
            assert known == tuple(items[items > 0].tolist())
            targets = tuple(batch.targets[mine].tolist())
            found.append((int(batch.users[mine][0]), known, targets))
    assert sorted(found) == expected
    assert len(batches) == 5  # nine users by two


def test_a_gpu_s_batches_have_few_shapes_and_the_same_events():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 20, rng.integers(2, 60)).tolist() for _ in range(40)]
    train = sr.Interactions(sequences, num_items=20)
    plain, coarse = (Batches(train, 40, 4, torch.device("cpu")) for _ in range(2))
    coarse.multiple = 16
    shapes = set()
    for a, b in zip(plain.epoch(np.random.default_rng(1)), coarse.epoch(np.random.default_rng(1)),
                    strict=True):  # fmt: skip
        shapes.add(b.items.shape[2])
        assert torch.equal(b.items[..., -a.items.shape[2] :], a.items)
        assert torch.equal(b.items.flatten()[b.real], a.items.flatten()[a.real])
        assert torch.equal(a.targets, b.targets) and torch.equal(a.users, b.users)
    assert shapes <= {16, 32, 40}


def test_a_batch_of_several_models_is_the_batches_of_each():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 20, rng.integers(2, 9)).tolist() for _ in range(10)]
    train = sr.Interactions(sequences, num_items=20)
    batches = Batches(train, 6, 4, torch.device("cpu"))
    rngs = [np.random.default_rng(seed) for seed in (1, 2, 1, 2)]  # the last of ten users by four
    together, *alone = batches.epoch(*rngs[:2]), *(batches.epoch(rng) for rng in rngs[2:])
    for batch, *parts in zip(together, *alone, strict=True):
        assert batch.sizes == [part.sizes[0] for part in parts]
        for name in ("targets", "users"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(p, name) for p in parts]))
        assert torch.equal(batch.items.flatten()[batch.real],
                           torch.cat([p.items.flatten()[p.real] for p in parts]))  # fmt: skip
        assert (batch.items > 0).sum() == len(batch.real)


def test_every_target_weighs_the_same_whatever_batch_it_falls_into():
    rng = np.random.default_rng(0)
    lengths = [2] * 24 + [9] * 24 + [3, 5]  # short histories come together, and so do long ones
    sequences = [rng.integers(1, 21, length).tolist() for length in lengths]
    split = replace(SPLIT, train=sr.Interactions(sequences, num_items=20))
    model = fresh_model(dropout=0.0)
    batches = Batches(split.train, 8, 4, torch.device("cpu"))
    total = 0.0
    for batch in batches.epoch(np.random.default_rng(1)):
        known = model.encode(batch.items[0]).flatten(0, 1)[batch.real]
        total = total + LOSSES["ce"](model, known, batch.targets) * batch.shares[0]
    apart = [
        torch.nn.functional.cross_entropy(  # (B, V, L) against (B, L), history by history
            model(torch.tensor([s[:-1]])).transpose(1, 2), torch.tensor([s[1:]]), reduction="sum"
        )
        for s in sequences
    ]
    mean = sum(apart) / sum(length - 1 for length in lengths)
    assert torch.allclose(total / len(batches), mean, rtol=1e-5)
    ours = torch.autograd.grad(total / len(batches), model.items.weight)[0]
    plain = torch.autograd.grad(mean, model.items.weight)[0]
    assert torch.allclose(ours, plain, atol=1e-6)
    _, history = train(fresh_model(dropout=0.0), split, epochs=1, lr=1e-9)
    assert history.column("loss")[0] == pytest.approx(mean.item(), rel=1e-4)


def test_negatives_are_never_the_user_s_own_and_otherwise_uniform():
    from scipy.stats import chisquare

    rng = np.random.default_rng(0)
    sequences = [rng.permutation(np.arange(1, 31))[: rng.integers(2, 28)] for _ in range(12)]
    train = sr.Interactions([s.tolist() for s in sequences], num_items=30)
    draw = Negatives(train, 50, torch.device("cpu"))
    counts, source = np.zeros((12, 31), dtype=int), torch.Generator().manual_seed(0)
    for batch in Batches(train, 40, 4, torch.device("cpu")).epoch(rng):
        drawn = draw(batch, [source])
        assert drawn.shape == (len(batch.targets), 50)
        np.add.at(counts, (batch.users[:, None].numpy(), drawn.numpy()), 1)
    for user, sequence in enumerate(sequences):
        free = np.setdiff1d(np.arange(1, 31), sequence)
        assert counts[user, sequence].sum() == 0 and counts[user, 0] == 0
        assert chisquare(counts[user, free]).pvalue > 1e-4, user


def test_a_user_who_took_everything_still_gets_negatives():
    train = sr.Interactions([[1, 2, 3], [1, 2]], num_items=3)
    draw = Negatives(train, 6, torch.device("cpu"))
    for batch in Batches(train, 5, 2, torch.device("cpu")).epoch(np.random.default_rng()):
        drawn = draw(batch, [torch.Generator()])
        assert drawn.min() >= 1 and drawn.max() <= 3


# -- the same again ----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_one_seed_gives_the_same_weights_bit_for_bit(loss):
    model, history = train(loss=loss, negatives=2)
    torch.rand(7)  # what torch's generator did before makes no difference
    again, repeated = train(loss=loss, negatives=2)
    assert_same_weights(again, model)
    assert history.column("loss") == repeated.column("loss")
    other, _ = train(loss=loss, negatives=2, seed=1)
    assert not torch.equal(weights(other), weights(model))


def test_the_world_s_random_numbers_are_left_alone():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train(loss="bce")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_a_cpu_s_run_touches_no_gpu(monkeypatch):
    for name in ("manual_seed_all", "device_count", "get_rng_state"):  # as torch's own do
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: pytest.fail(name))
    train(fresh_model(), epochs=1, device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_s_random_numbers_are_left_alone_and_repeat():
    before = torch.cuda.get_rng_state()
    models = [train(loss="bce", device="cuda")[0] for _ in range(2)]
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.testing.assert_close(*map(weights, models), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_a_world_whose_rule_is_known(loss):
    inter = sr.worlds.markov(num_users=300, num_items=80, length=14, seed=1)
    split = sr.leave_one_out(inter)
    model = sr.SASRec(80, max_len=12, dim=16, num_blocks=1, dropout=0.0, seed=0)
    before = sr.evaluate(model, split)["NDCG@5"]
    _, history = train(model, split, loss=loss, epochs=10, lr=1e-2, batch_size=32, negatives=4)
    after = sr.evaluate(model, split)["NDCG@5"]
    assert history.column("loss")[-1] < 0.7 * history.column("loss")[0]
    assert after > 4 * before
    assert after > (0.75 if loss == "ce" else 0.5) * inter.truth.best["NDCG@5"]


@pytest.mark.parametrize("instructions", [True, False])
def test_bfloat16_products_train_as_float32_does(monkeypatch, instructions):
    """And where a processor would have to imitate them, they are float32."""
    monkeypatch.setattr(loop, "has_bfloat16", lambda where: instructions)
    exact, history = train(epochs=5)
    rough, other = train(epochs=5, precision="bfloat16")
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    assert torch.equal(weights(exact), weights(rough)) != instructions
    np.testing.assert_allclose(other.column("loss"), history.column("loss"), rtol=0.02)


# -- when to stop, and what to keep ------------------------------------------------------------


def scripted(monkeypatch, scores):
    """Let validation find these scores, one an epoch."""
    script = iter(scores)
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"NDCG@10": next(script)})


def test_it_stops_when_patience_is_spent_and_returns_to_the_best_epoch(monkeypatch):
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.1, 0.9])
    states = []
    model = fresh_model()
    _, history = train(model, epochs=6, patience=3,
                       on_epoch=lambda entry: states.append(weights(model)))  # fmt: skip
    assert len(history) == len(states) == 5 and history.stopped == "patience"
    assert history.best_epoch == 2 and history.best["NDCG@10"] == 0.3  # the first of equals
    assert torch.equal(weights(model), states[1])
    assert not any(torch.equal(states[1], states[i]) for i in (0, 2, 3, 4))
    assert not model.training


def test_without_patience_it_trains_to_the_end(monkeypatch):
    scripted(monkeypatch, [0.3, 0.2, 0.1, 0.0])
    model, history = train(epochs=4, patience=None)
    assert len(history) == 4 and history.stopped == "epochs" and history.best_epoch == 1
    monkeypatch.undo()
    assert_same_weights(model, train(epochs=1)[0])


@pytest.mark.parametrize("monitor", ["HR@3", "MRR"])
def test_another_metric_may_choose(monitor):
    _, history = train(monitor=monitor, epochs=2)
    assert monitor in history.best and history.best_epoch in (1, 2)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_an_epoch_tells_how_long_its_gradients_were(clip_norm):
    model, lengths = fresh_model(), []
    zero_grad = torch.optim.Adam.zero_grad

    def watched(optimizer, *args, **kwargs):  # before the next step: what the last one left
        held = [p.grad for p in model.parameters() if p.grad is not None]
        lengths.extend([torch.cat([g.flatten() for g in held]).norm()] if held else [])
        return zero_grad(optimizer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "zero_grad", watched)
        _, history = train(model, epochs=1, clip_norm=clip_norm)
    lengths.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
    (entry,) = history.epochs
    if clip_norm is None:
        assert len(lengths) > 3
        assert entry["gradient"] == pytest.approx(float(torch.stack(lengths).median()), rel=1e-5)
        assert entry["longest gradient"] == pytest.approx(float(max(lengths)), rel=1e-5)
    else:  # measured before they are shortened
        assert max(lengths) < 0.1001 and entry["longest gradient"] > 0.2


def test_without_validation_the_last_epoch_is_kept():
    empty = sr.Part(np.empty(0, int), sr.Ragged.from_lists([]), np.empty(0, int))
    split = sr.Split(SPLIT.train, empty, SPLIT.test, "none")
    states = []
    model = fresh_model()
    _, history = train(model, split, patience=1, on_epoch=lambda _: states.append(weights(model)))
    assert len(history) == 3 and torch.equal(weights(model), states[-1])
    assert set(history.epochs[0]) == {"epoch", "loss", "gradient", "longest gradient", "seconds"}
    assert history.best_epoch == 3 and history.best == history.epochs[-1]


def test_the_history_tells_what_happened():
    seen = []
    _, history = train(epochs=3, on_epoch=seen.append)
    assert seen == history.epochs and history.column("epoch") == [1, 2, 3]
    assert all(s > 0 for s in history.column("seconds"))
    assert history.seconds == pytest.approx(sum(history.column("seconds")))
    assert math.isnan(history.column("no such thing")[0])
    assert sr.History(**json.loads(json.dumps(history.to_dict()))) == history
    assert "3 epochs" in repr(history) and "no epoch" in repr(sr.History())
    with pytest.raises(ValueError, match="no epoch has ended"):
        sr.History().best  # noqa: B018


def test_the_bar_can_be_silenced(capsys):
    train(epochs=1)
    assert capsys.readouterr() == ("", "")
    train(epochs=1, progress=True)
    printed = capsys.readouterr()
    assert printed.out == "" and "fit markov" in printed.err


# -- the learning rate -------------------------------------------------------------------------


def rates(monkeypatch, **options):
    """The learning rate of each step."""
    used = []

    class Watched(torch.optim.Adam):
        def step(self, *args):
            used.append(self.param_groups[0]["lr"])
            return super().step(*args)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    train(epochs=4, lr=0.01, **options)
    return np.array(used)  # 60 users in batches of 16: four steps an epoch


def test_the_learning_rate_is_constant_unless_told(monkeypatch):
    assert rates(monkeypatch).tolist() == [0.01] * 16


def test_warmup_rises_in_equal_steps(monkeypatch):
    np.testing.assert_allclose(rates(monkeypatch, warmup=5)[:6],
                               [0.002, 0.004, 0.006, 0.008, 0.01, 0.01])  # fmt: skip


def test_cosine_falls_to_nothing(monkeypatch):
    used = rates(monkeypatch, schedule="cosine")
    assert used[0] == 0.01 and used[8] == pytest.approx(0.005)
    assert (np.diff(used) < 0).all() and 0 < used[-1] < 1e-3 * 0.5


def gradients(monkeypatch, **options):
    """The gradient of each step, all parameters as one vector: (steps, number of parameters)."""
    used = []

    class Watched(torch.optim.Adam):
        def step(self, *args):
            (group,) = self.param_groups
            used.append(torch.cat([p.grad.flatten() for p in group["params"]]))
            return super().step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Watched)
        model, _ = train(epochs=3, **options)
    return torch.stack(used), weights(model)


def test_a_gradient_too_long_is_shortened_and_keeps_its_direction(monkeypatch):
    free, as_trained = gradients(monkeypatch)
    assert torch.equal(gradients(monkeypatch, clip_norm=1e6)[1], as_trained)
    limit = float(free[0].norm()) / 3
    clipped, otherwise = gradients(monkeypatch, clip_norm=limit)
    torch.testing.assert_close(clipped[0], free[0] / 3, rtol=1e-4, atol=1e-9)
    assert (clipped.norm(dim=1) < limit * (1 + 1e-5)).all()
    assert not torch.equal(otherwise, as_trained)


def test_weight_decay_shrinks():
    plain, _ = train(epochs=5)
    decayed, _ = train(epochs=5, weight_decay=1.0)
    assert weights(decayed).norm() < weights(plain).norm()


def test_the_epoch_is_chosen_by_the_ranking_that_is_asked_for():
    for seen in (False, True):
        model, history = train(epochs=1, filter_seen=seen)
        found = sr.evaluate(model, SPLIT, part="validation", filter_seen=seen)
        assert history.best["NDCG@10"] == found["NDCG@10"]
        assert found["NDCG@10"] != (found.unfiltered if seen else found.filtered)["NDCG@10"]


# -- what cannot be done -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"loss": "hinge"}, "no loss is called 'hinge'; there are: ce, sampled_ce, bce, bpr"),
        ({"schedule": "linear"}, "schedule must be 'constant' or 'cosine', not 'linear'"),
        ({"precision": "float16"}, "precision must be 'float32' or 'bfloat16'"),
        ({"monitor": "NDGC@10"}, "monitor must be 'HR@K', 'NDCG@K' or 'MRR', not 'NDGC@10'"),
        ({"monitor": "HR@0"}, "not 'HR@0'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"loss": "bce", "negatives": 0}, "negatives must be at least 1, got 0"),
        ({"loss": 3}, "loss must be a string, got 3"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, got -1"),
        ({"seed": None}, "seed must be a whole number, 0 or more, got None"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"patience": -1}, "patience must be at least 1, got -1"),
        ({"patience": True}, "patience must be a whole number or None, got True"),
        ({"lr": 0}, "lr must be above 0 and finite, got 0"),
        ({"lr": math.nan}, "lr must be above 0 and finite, got nan"),
        ({"lr": "x"}, "lr must be a number, got 'x'"),
        ({"clip_norm": 0}, "clip_norm must be above 0 and finite, got 0"),
        ({"clip_norm": math.inf}, "clip_norm must be above 0 and finite, got inf"),
        ({"clip_norm": "x"}, "clip_norm must be a number or None, got 'x'"),
        ({"warmup": -5}, "warmup must be at least 0, got -5"),
        ({"weight_decay": -1e-3}, "weight_decay must be at least 0, got -0.001"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0, got nan"),
        ({"filter_seen": 1}, "filter_seen must be true or false, got 1"),
    ],
)
def test_an_unknown_argument_is_refused_before_anything_is_trained(wrong, words):
    model = fresh_model()
    before = weights(model)
    with pytest.raises(ValueError) as error:
        train(model, **wrong)
    assert words in str(error.value)
    assert torch.equal(weights(model), before)


def test_numpy_s_numbers_and_torch_s_devices_are_arguments_like_others(tmp_path):
    model = fresh_model(dim=np.int64(8), attention={"name": "awrsr-simple", "width": np.int64(3)})
    _, history = train(model, epochs=np.int64(1), lr=np.float32(1e-3), filter_seen=np.True_,
                       device=torch.device("cpu"), seed=np.int64(0),
                       checkpoint=tmp_path / "run.pt")  # fmt: skip
    assert len(history) == 1 and (tmp_path / "run.pt").exists()


def test_what_a_checkpoint_cannot_hold_is_said_before_training(tmp_path):
    model = fresh_model()
    model.config["note"] = object()
    with pytest.raises(TypeError, match="not JSON serializable"):
        train(model, checkpoint=tmp_path / "run.pt", on_epoch=lambda entry: pytest.fail("trained"))


def test_a_model_of_other_items_is_refused_before_anything_is_trained():
    for known in (SPLIT.num_items - 1, SPLIT.num_items + 1):
        with pytest.raises(ValueError, match=f"knows {known} items and the split has 20; make it"):
            train(sr.SASRec(known, max_len=8, dim=8))
    with pytest.raises(ValueError, match="no model to train"):
        sr.fit_seeds([], SPLIT, seeds=[])


def test_nothing_to_train_on_is_said():
    lone = sr.leave_one_out(sr.Interactions([[1, 2, 3], [4, 5, 6]], num_items=20, name="lone"))
    with pytest.raises(ValueError, match="lone: no user has two training events.*lower k-core"):
        train(split=lone)


# -- diverging ---------------------------------------------------------------------------------


def poison(monkeypatch, epoch, step, value=math.nan):
    """Make the loss ``value`` at one step (there are four an epoch)."""
    calls, honest = iter(range(1, 1000)), LOSSES["ce"]

    def ce(*args):
        factor = value if next(calls) == 4 * (epoch - 1) + step else 1.0
        return factor * honest(*args)

    monkeypatch.setitem(LOSSES, "ce", ce)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_the_last_good_state(monkeypatch, value, tmp_path):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    scripted(monkeypatch, [0.1, 0.2])
    poison(monkeypatch, epoch=3, step=2, value=value)
    model = fresh_model()
    words = rf"loss is {value} at epoch 3, step 2.*lower lr"
    with pytest.raises(sr.TrainingDiverged, match=words):
        train(model, epochs=5, checkpoint=tmp_path / "run.pt")
    assert not model.training
    assert weights(model).isfinite().all()
    monkeypatch.undo()
    scripted(monkeypatch, [0.1, 0.2])
    assert_same_weights(model, train(epochs=2)[0])
    # and the file of the run goes on from the second epoch, this time without poison
    scripted(monkeypatch, [0.3, 0.4])
    _, history = train(epochs=4, checkpoint=tmp_path / "run.pt")
    assert history.column("epoch") == [1, 2, 3, 4]


def test_diverging_at_once_leaves_the_model_as_it_was(monkeypatch):
    poison(monkeypatch, epoch=1, step=1)
    model = fresh_model()
    with pytest.raises(sr.TrainingDiverged, match="epoch 1, step 1"):
        train(model)
    assert_same_weights(model, fresh_model())


def test_a_learning_rate_beyond_reason_diverges():
    model = fresh_model()
    with pytest.raises(sr.TrainingDiverged, match="epoch 1, step [234]"):
        train(model, lr=1e30)
    assert_same_weights(model, fresh_model())


def test_an_epoch_s_last_update_is_looked_at_too():
    """It shows in no loss of that epoch."""
    model = fresh_model()
    with pytest.raises(sr.TrainingDiverged, match="a parameter is no longer finite at epoch 1"):
        train(model, lr=1e39, batch_size=1000, weight_decay=1.0)  # one step an epoch
    assert_same_weights(model, fresh_model())


# -- going on ----------------------------------------------------------------------------------

HARD = dict(epochs=6, loss="bce", negatives=2, schedule="cosine", warmup=3, **FAST)


def run(checkpoint, out, **hooks):
    """A run with all there is to remember: negatives, dropout, a schedule, the best epoch."""
    model = fresh_model()
    history = sr.fit(model, SPLIT, checkpoint=checkpoint, **HARD, **hooks)
    torch.save({"model": model.state_dict(), "history": history.to_dict()}, out)


def in_a_child(work, killed_after=None):
    """Run ``work`` in a forked process, perhaps killed after some seconds; how did it end?"""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    if killed_after is not None:
        time.sleep(killed_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def suicidal(owner, name, call, after=False):
    """Make the ``call``-th call of ``owner.name`` the last thing this process does."""
    calls, honest = iter(range(1, 10**6)), getattr(owner, name)

    def fatal(*args, **options):
        last = next(calls) == call
        if last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = honest(*args, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, fatal)


def be_killed_again_and_again(folder):
    loop.SAVE_EVERY = 0
    torch.set_num_threads(1)  # a forked process has no other threads
    train(epochs=1)  # imports what torch puts off until it is needed
    assert in_a_child(lambda: run(f"{folder}/whole.pt", f"{folder}/whole")) == 0
    moments = [  # each counted from where the last one left the run: 4 steps and 1 save an epoch
        (torch.optim.Adam, "step", 3, False),
        (torch.Tensor, "backward", 6, True),
        (os, "fsync", 1, False),  # the new file is there under another name, perhaps half
        (os, "replace", 1, False),
        (os, "replace", 1, True),
        (loop, "evaluate", 2, False),
    ]
    for moment in moments:

        def work(moment=moment):
            suicidal(*moment)
            run(f"{folder}/run.pt", f"{folder}/end")

        assert in_a_child(work) == "killed", moment
    delays = random.Random(0)
    slow = dict(on_epoch=lambda entry: time.sleep(0.02))
    for _ in range(4):
        in_a_child(
            lambda: run(f"{folder}/run.pt", f"{folder}/end", **slow),
            killed_after=delays.uniform(0.01, 0.1),
        )
    assert in_a_child(lambda: run(f"{folder}/run.pt", f"{folder}/end")) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes it forks")
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(tmp_path):
    # Each save waits for the disk, and some disks keep one waiting.
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=600)
    whole, end = (torch.load(tmp_path / name, weights_only=True) for name in ("whole", "end"))
    assert len(whole["history"]["epochs"]) == 6
    for state in (whole, end):
        for entry in state["history"]["epochs"]:
            assert entry.pop("seconds") > 0
    assert whole["history"] == end["history"]
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, end["model"][name]), name


def test_a_checkpoint_is_written_now_and_then_at_the_end_and_before_it_is_too_late(
    tmp_path, monkeypatch
):
    saved, save = [], loop.save_checkpoint

    def spy(*args, members, **more):
        saved.append(len(members[0]["history"]["epochs"]))
        save(*args, members=members, **more)

    def stop(entry):
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", spy)
    whole, _ = train(checkpoint=tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=tmp_path / "cut.pt", on_epoch=stop)
    again, history = train(checkpoint=tmp_path / "cut.pt")
    assert saved == [3, 2, 3] and len(history) == 3
    assert_same_weights(again, whole)
    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    train(checkpoint=tmp_path / "often.pt")
    assert saved[3:] == [1, 2, 3]


def test_a_finished_run_is_not_trained_again_but_may_be_extended(tmp_path):
    model, history = train(epochs=2, checkpoint=tmp_path / "run.pt")
    again, same = train(epochs=2, checkpoint=tmp_path / "run.pt")
    assert same == history
    assert_same_weights(again, model)
    with pytest.raises(ValueError, match="at epoch 2, past epochs=1; ask for at least 2"):
        train(epochs=1, checkpoint=tmp_path / "run.pt")
    longer, more = train(epochs=4, checkpoint=tmp_path / "run.pt")
    assert more.epochs[:2] == history.epochs and len(more) == 4
    assert_same_weights(longer, train(epochs=4)[0])


def test_a_run_that_was_stopped_early_stays_stopped(tmp_path, monkeypatch):
    scripted(monkeypatch, [0.2, 0.1])
    options = dict(epochs=9, patience=1, checkpoint=tmp_path / "run.pt")
    model, history = train(**options)
    again, same = train(**options)  # the script is at its end: another epoch would fail
    assert same == history and same.stopped == "patience" and len(same) == 2
    assert_same_weights(again, model)


def test_a_run_that_goes_on_for_more_patience_says_why_it_ended(tmp_path, monkeypatch):
    scripted(monkeypatch, [0.2, 0.1, 0.1])
    for patience, ended, epochs in ((1, "patience", 2), (5, "epochs", 3), (2, "patience", 3)):
        _, history = train(epochs=3, patience=patience, checkpoint=tmp_path / "run.pt")
        assert (history.stopped, len(history)) == (ended, epochs)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 0.5}, "lr: 0.001 there, 0.5 here"),
        ({"loss": "bpr"}, "loss: 'ce' there, 'bpr' here"),
        ({"seed": 7}, "seed: 0 there, 7 here"),
        ({"model": {"dim": 4}}, "dim: 8 there, 4 here"),
        ({"model": {"attention": "uniform"}}, "attention: 'softmax' there, 'uniform' here"),
        ({"split": 4}, "data: "),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, changed, named):
    train(epochs=1, checkpoint=tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()
    model = fresh_model(**changed.pop("model", {}))
    if "split" in changed:  # as many users, items and events, but others
        world = sr.worlds.markov(num_users=60, num_items=20, length=9, seed=changed["split"])
        changed["split"] = sr.leave_one_out(world)
    with pytest.raises(ValueError, match="checkpoint of another run") as error:
        train(model, checkpoint=tmp_path / "run.pt", **changed)
    assert named in str(error.value) and "give this run another file" in str(error.value)
    assert (tmp_path / "run.pt").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    ["uniform", sr.RemovePosition(-2), sr.ScaleResidual(0.5), sr.SwapPositions(-1, -2), squared],
    ids=lambda change: type(change).__name__,
)
def test_a_run_under_an_intervention_shares_no_checkpoint_with_one_without(tmp_path, change):
    def under(**options):
        model = fresh_model()
        with sr.intervene(model, change):
            return train(model, checkpoint=tmp_path / "run.pt", **options)[0]

    cut = under(epochs=1)
    with pytest.raises(ValueError, match="checkpoint of another run.*interventions"):
        train(checkpoint=tmp_path / "run.pt")
    assert_same_weights(cut, under(epochs=1))  # its own it takes up
    with sr.intervene(fresh_model(), change) as model:
        assert " at 0x" not in str(model.departures())  # in another process, too


def test_edits_of_one_name_share_no_checkpoint(tmp_path):
    def under(edit, **options):
        with sr.intervene(fresh_model(), edit) as model:
            return train(model, checkpoint=tmp_path / "run.pt", **options)[0]

    def scaled_by(factor):
        return lambda weights, allowed: factor * weights

    cut = under(lambda weights, allowed: 0.5 * weights, epochs=1)
    assert_same_weights(cut, under(lambda weights, allowed: 0.5 * weights, epochs=1))
    for other in (lambda weights, allowed: 0.7 * weights, lambda weights, allowed: weights / 0.5):
        with pytest.raises(ValueError, match="checkpoint of another run.*interventions"):
            under(other)
    (tmp_path / "run.pt").unlink()
    under(scaled_by(0.5), epochs=1)
    with pytest.raises(ValueError, match="checkpoint of another run.*interventions"):
        under(scaled_by(0.7))


def test_the_same_events_of_other_users_are_other_data(tmp_path):
    one, cut_otherwise, asked_otherwise = (
        sr.leave_one_out(sr.Interactions(rows, num_items=9))
        for rows in (
            [[1, 2, 3, 8, 9], [4, 5, 8, 9]],
            [[1, 2, 8, 9], [3, 4, 5, 8, 9]],
            [[1, 2, 3, 7, 9], [4, 5, 7, 9]],
        )
    )
    train(sr.SASRec(9, max_len=8, dim=8), one, epochs=1, checkpoint=tmp_path / "run.pt")
    for other in (cut_otherwise, asked_otherwise):
        assert (other.train.sequences.values == one.train.sequences.values).all()
        with pytest.raises(ValueError, match="checkpoint of another run.*data: "):
            train(sr.SASRec(9, max_len=8, dim=8), other, checkpoint=tmp_path / "run.pt")


def test_a_checkpoint_does_not_make_one_model_of_another(tmp_path):
    """Models that differ in their initial values alone: the file would put its own into both."""
    path = tmp_path / "run.pt"
    train(fresh_model(seed=1), epochs=1, checkpoint=path)
    for seed, named in ((2, r"\[2\]"), (None, r"\[None\]")):
        with pytest.raises(ValueError, match=rf"model_seeds: \[1\] there, {named} here"):
            train(fresh_model(seed), epochs=1, checkpoint=path)


@pytest.mark.parametrize(
    "error", [MemoryError("3 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_checkpoint_that_memory_does_not_suffice_for_is_left(tmp_path, monkeypatch, error):
    def load(*_, **__):
        raise error

    path = tmp_path / "run.pt"
    train(epochs=1, checkpoint=path)
    good = path.read_bytes()
    with monkeypatch.context() as patched, pytest.raises(type(error), match=str(error)):
        patched.setattr(torch, "load", load)
        train(epochs=2, checkpoint=path)
    assert path.read_bytes() == good
    assert len(train(epochs=2, checkpoint=path)[1]) == 2


def test_a_damaged_checkpoint_is_set_aside(tmp_path):
    path = tmp_path / "run.pt"
    expected, _ = train(epochs=2, checkpoint=path)
    good = path.read_bytes()
    flipped = bytearray(good)
    place = good.index(expected.state_dict()["norm.weight"].numpy().tobytes())
    flipped[place] ^= 1  # one bit of one weight
    for bad in (b"", good[:100], good[: len(good) // 2], good[:-1], b"<html>" * 99, bytes(flipped)):
        path.write_bytes(bad)
        with pytest.warns(UserWarning, match=r"run\.pt could not be read .* run\.pt\.damaged"):
            model, history = train(epochs=2, checkpoint=path)
        assert (tmp_path / "run.pt.damaged").read_bytes() == bad
        assert len(history) == 2
        assert_same_weights(model, expected)
        assert (
            torch.load(path, weights_only=True)["members"][0]["history"]["epochs"] == history.epochs
        )


class Trap:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_holds_no_code_and_runs_none(tmp_path):
    path = tmp_path / "run.pt"
    train(epochs=1, checkpoint=path)
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        operations = list(pickletools.genops(archive.read(pickled)))
    named = {value for op, value, _ in operations if op.name == "GLOBAL"}
    assert not any(op.name in ("STACK_GLOBAL", "INST", "OBJ") for op, _, _ in operations)
    assert named <= {"collections OrderedDict", "torch._utils _rebuild_tensor_v2",
                     "torch FloatStorage"}  # fmt: skip

    trap = Trap()
    trap.path = str(tmp_path / "sprung")
    torch.save({"identity": "{}", "model": trap}, path)
    with pytest.warns(UserWarning, match="could not be read"):
        train(epochs=1, checkpoint=path)
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "run.pt.damaged", weights_only=False)  # the trap was a real one
    assert (tmp_path / "sprung").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    train(epochs=1, checkpoint=path)
    old, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            train(epochs=2, checkpoint=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["run.pt"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, history = train(epochs=2, checkpoint=path)
    assert len(history) == 2
    assert_same_weights(model, train(epochs=2)[0])


if __name__ == "__main__":
    be_killed_again_and_again(sys.argv[1])
