"""Padding, bucketed batches, dropout: what stands between ragged histories and a step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import seqrec_lib as sr
from seqrec_lib.data.batching import bucketed_batches, pad
from seqrec_lib.models.dropout import Dropout

LISTS = st.lists(st.lists(st.integers(1, 99), max_size=9), max_size=8)


def pad_plainly(lists, max_len):
    lists = [one[-max_len:] for one in lists]
    length = max([len(one) for one in lists] + [1])
    rows = [([0] * length + one)[-length:] for one in lists]
    return torch.tensor(rows, dtype=torch.int64).view(len(lists), length)


@given(LISTS, st.integers(1, 12))
def test_pad_equals_the_plain_form(lists, max_len):
    padded = pad(sr.Ragged.from_lists(lists), max_len)
    assert padded.dtype == torch.int64
    assert torch.equal(padded, pad_plainly(lists, max_len))


def test_pad_copies_and_widens_what_it_reads():
    lists = sr.Ragged(np.array([1, 2, 3], dtype=np.int32), [0, 2, 3])
    padded = pad(lists, 5)
    assert padded.tolist() == [[1, 2], [0, 3]] and padded.dtype == torch.int64
    padded += 1
    assert lists.values.tolist() == [1, 2, 3]


@given(st.lists(st.integers(0, 300), max_size=400), st.integers(1, 40), st.integers(1, 5))
def test_every_sequence_comes_exactly_once(lengths, batch_size, window):
    batches = list(
        bucketed_batches(np.array(lengths, dtype=np.int64), batch_size,
                         np.random.default_rng(0), window)
    )  # fmt: skip
    rows = np.concatenate([*batches, np.empty(0, dtype=np.int64)])
    assert sorted(rows) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_batches_hold_little_padding_and_differ_from_epoch_to_epoch():
    rng = np.random.default_rng(0)
    lengths = np.minimum(2 + rng.geometric(1 / 60, 20_000), 200)

    def padding(batches):
        cells = sum(lengths[rows].max() * len(rows) for rows in batches)
        return 1 - lengths.sum() / cells

    first = list(bucketed_batches(lengths, 128, rng))
    shuffled = np.array_split(rng.permutation(len(lengths)), len(first))
    assert padding(first) < 0.06
    assert padding(shuffled) > 0.6  # what the buckets save
    second = list(bucketed_batches(lengths, 128, rng))
    assert {frozenset(rows) for rows in first}.isdisjoint(frozenset(rows) for rows in second)
    # The order of batches says nothing of their lengths, or training would be a curriculum.
    mean = np.array([lengths[rows].mean() for rows in first])
    assert abs(np.corrcoef(np.arange(len(mean)), mean)[0, 1]) < 0.25


def test_the_same_generator_gives_the_same_batches():
    lengths = np.arange(500) % 37
    once, again = (list(bucketed_batches(lengths, 16, np.random.default_rng(3))) for _ in "ab")
    for one, other in zip(once, again, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    dropout, x = Dropout(p), torch.ones(1001, 333, requires_grad=True)  # no multiple of four
    y = dropout(x)
    deviation = 4 * (p * (1 - p) / x.numel()) ** 0.5
    assert abs(float((y == 0).float().mean()) - p) < deviation
    assert abs(float(y.detach().mean()) - 1) < deviation / (1 - p)
    assert len(y.detach().unique()) == 2  # zero, and one scale for all others
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # ones in: the gradient is the mask, scaled
    # neighbours are drawn apart: four entries share one 64-bit draw
    kept = (y.detach() != 0).float().flatten()[: 4 * 83_000].view(-1, 4)
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02


def test_dropout_is_off_where_it_should_be_and_repeats_from_a_seed():
    x = torch.randn(40, 50)
    assert Dropout(0.0)(x) is x or torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros_like(x))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(Dropout(0.5)(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_dropout_at_its_ends_gives_numbers(p):
    torch.manual_seed(0)
    assert Dropout(p)(torch.ones(64, 64)).isfinite().all()
