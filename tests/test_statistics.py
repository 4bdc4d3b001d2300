"""Statistics of a data set: one pass, equal to what the plain means over all histories are."""

import json
import math

import numpy as np
import pytest
import torch

import seqrec_lib as sr
from seqrec_lib.analysis import statistics
from seqrec_lib.data.batching import pad
from seqrec_lib.data.interactions import Ragged


def histories(count=30, seed=0):
    rng = np.random.default_rng(seed)
    return Ragged.from_lists([rng.integers(1, 10, rng.integers(1, 12)) for _ in range(count)])


def model(kind=sr.SASRec, **settings):
    settings = {"num_items": 9, "max_len": 7, "dim": 8, "num_heads": 2, "seed": 0, **settings}
    return kind(**settings)


def plain(m, data):
    """The same from one large batch."""
    items = pad(data, m.max_len)
    trace = sr.capture(m, items)
    found = {"entropy": [sr.normalized_entropy(x.weights, x.allowed) for x in trace]}
    for name, kind in {
        "attn_w": "weights",
        "attn": "attn",
        "attn_res": "attn_res",
        "attn_res_ln": "attn_res_ln",
    }.items():
        found[name] = [sr.decompose(layer)[kind].mixing_ratio for layer in trace]
    return items, trace, {name: torch.stack(values).double() for name, values in found.items()}


def test_means_over_positions_lengths_and_the_last(monkeypatch):
    monkeypatch.setattr(statistics, "_CELLS", 300)  # several batches
    m, data = model(norm="pre"), histories()
    stats = sr.attention_statistics(m, data)
    items, _, expected = plain(m, data)
    lengths = (items > 0).sum(1)
    assert set(stats["mixing"]) == {f"{n}{s}" for n in expected for s in ("", "_last")}
    for name, values in expected.items():  # (layers, B, L)
        assert stats["mixing"][name] == pytest.approx(values.nanmean((1, 2)).tolist())
        assert stats["mixing"][f"{name}_last"] == pytest.approx(
            values[:, :, -1].nanmean(1).tolist()
        )
        for back in range(7):
            got = [layer[back] for layer in stats["by_position"][name]]
            want = values[:, :, -1 - back].nanmean(1).tolist()
            assert got == ([None] * 2 if math.isnan(want[0]) else pytest.approx(want))
        for length in range(8):
            got = [layer[length] for layer in stats["by_length"][name]]
            want = values[:, lengths == length].nanmean((1, 2)).tolist()
            assert got == ([None] * 2 if math.isnan(want[0]) else pytest.approx(want))
    assert stats["lengths"] == np.bincount(lengths, minlength=8).tolist()
    assert stats["users"] == 30 and stats["positions"] == int((items > 0).sum())


@pytest.mark.parametrize("recent", [3, 7, 10])
def test_average_maps_of_the_most_recent(recent):
    m, data = model(), histories()
    stats = sr.attention_statistics(m, data, recent=recent)
    items, trace, _ = plain(m, data)
    assert set(stats["maps"]) == {"weights", "attn_res_ln"}
    for name, maps in stats["maps"].items():
        for layer, average in zip(trace, maps, strict=True):
            whole = sr.decompose(layer)[name].norms
            assert np.shape(average) == (recent, recent)
            for i in range(-recent, 0):
                for j in range(-recent, 0):
                    far = min(i, j)
                    if far < -7:
                        assert average[i][j] is None
                        continue
                    reach = items[:, far] > 0
                    assert average[i][j] == pytest.approx(
                        whole[reach, i, j].mean().item(), abs=1e-6
                    )


def test_the_result_is_plain_data_and_the_model_is_left_alone():
    m = model().train()
    stats = sr.attention_statistics(m, histories(5))
    assert json.loads(json.dumps(stats, allow_nan=False)) == stats
    assert m.training and m.blocks[0].recorder is None


def test_uniform_weights_have_entropy_one_and_known_mixing():
    m, data = model(attention="uniform"), Ragged.from_lists([[1, 2, 3, 4]])
    stats = sr.attention_statistics(m, data)
    assert stats["mixing"]["entropy"] == pytest.approx([1, 1])
    assert stats["by_position"]["entropy"][0][:5] == pytest.approx([1, 1, 1, None, None])
    assert stats["mixing"]["attn_w_last"] == pytest.approx([3 / 4, 3 / 4])
    assert stats["mixing"]["attn_w"] == pytest.approx([(0 + 1 / 2 + 2 / 3 + 3 / 4) / 4] * 2)
    with sr.intervene(m, "last"):
        stats = sr.attention_statistics(m, data)
    assert stats["mixing"]["entropy"] == stats["mixing"]["attn_res_ln"] == [0, 0]


def test_entropy_by_hand():
    weights = torch.tensor([[[[1.0, 0], [0.25, 0.75]]]])
    entropy = sr.normalized_entropy(weights, torch.ones(2, 2).tril().bool()[None, None])
    assert entropy[0, 0].isnan()
    by_hand = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert entropy[0, 1].item() == pytest.approx(by_hand)


def test_a_split_a_part_and_histories_are_read():
    inter = sr.worlds.markov(num_users=20, num_items=30, length=8, seed=0)
    split, m = sr.leave_one_out(inter), model(num_items=30)
    stats = sr.attention_statistics(m, split)
    assert stats == sr.attention_statistics(m, split.test)
    assert stats == sr.attention_statistics(m, split.test.histories)
    assert stats != sr.attention_statistics(m, split, part="validation")
    with pytest.raises(ValueError, match="the part is empty"):
        sr.attention_statistics(m, Ragged.from_lists([]))


def test_memory_does_not_grow_with_the_number_of_users(monkeypatch):
    """No batch holds more than its share of map entries, whatever there is to read."""
    sizes, capture = [], statistics.capture

    def watched(model, items, keep):
        sizes.append(items.shape[0] * items.shape[1] ** 2 * model.num_heads)
        return capture(model, items, keep)

    monkeypatch.setattr(statistics, "capture", watched)
    monkeypatch.setattr(statistics, "_CELLS", 1000)
    sr.attention_statistics(model(), histories(300))
    assert len(sizes) > 10 and max(sizes) <= 1000


def test_stosa_has_statistics_of_both_paths():
    stats = sr.attention_statistics(model(sr.STOSA), histories(5))
    assert {"attn_res_ln", "covariance_attn_res_ln", "covariance_attn_w"} <= set(stats["mixing"])
    assert all(0 < x < 1 for x in stats["mixing"]["covariance_attn_res_ln"])
    slip = sr.attention_statistics(model(sr.STOSA, mean_attention=False), histories(5))
    assert "attn_res" not in slip["mixing"] and "covariance_attn_res" in slip["mixing"]
