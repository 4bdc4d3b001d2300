"""STOSA: distances, the two paths, losses, ranking. Weightings are in test_weighting.py."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import seqrec_lib as sr
from seqrec_lib.models.stosa import as_point, positive
from seqrec_lib.models.weighting import squared_distances
from seqrec_lib.training.losses import LOSSES, _scores, bpr, ce

HISTORY = torch.tensor([[0, 0, 3, 1, 4], [1, 5, 9, 2, 6]])


def model(**settings):
    settings = {"num_items": 9, "max_len": 6, "dim": 8, "num_heads": 2, "seed": 0, **settings}
    return sr.STOSA(**settings).eval()


def closed_form(mean_a, covariance_a, mean_b, covariance_b):
    """W2^2 of two Gaussians with any covariances (Dowson & Landau 1982)."""
    root = scipy.linalg.sqrtm(covariance_a)
    cross = scipy.linalg.sqrtm(root @ covariance_b @ root).real
    return np.sum((mean_a - mean_b) ** 2) + np.trace(covariance_a + covariance_b - 2 * cross)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_distances_equal_the_closed_form_on_a_matrix_square_root(seed, dim):
    rng = np.random.default_rng(seed)
    means, variances = rng.normal(size=(4, dim)), rng.gamma(1.0, size=(4, dim)) + 1e-3
    points = as_point((torch.tensor(means), torch.tensor(variances)))
    ours = squared_distances(points, points)
    theirs = [
        [
            closed_form(means[i], np.diag(variances[i]), means[j], np.diag(variances[j]))
            for j in range(4)
        ]
        for i in range(4)
    ]
    assert np.allclose(ours, theirs, atol=1e-8)


def test_a_variance_is_positive_and_its_root_has_a_slope():
    x = torch.tensor([-1e4, -30.0, -1.0, 0.0, 2.0], requires_grad=True)
    positive(x).sqrt().sum().backward()
    assert torch.allclose(positive(x)[2:], torch.tensor([np.exp(-1.0), 1.0, 3.0]).float())
    assert (positive(x) > 0).all() and x.grad.isfinite().all()


def test_score_is_minus_the_distance_to_every_item():
    stosa = model()
    encoded = mean, covariance = stosa.encode(HISTORY)
    scores = stosa.score(encoded)
    means, covariances = stosa.item_gaussians()
    expected = -(
        (mean[0, 4] - means[7]).square().sum()
        + (covariance[0, 4].sqrt() - covariances[7].sqrt()).square().sum()
    )
    assert torch.allclose(scores[0, 4, 7], expected, rtol=1e-5)
    assert scores.shape == (2, 5, 10) and (scores[..., 0] == -torch.inf).all()
    assert (scores <= 0).all() and torch.equal(stosa(HISTORY), scores)


def test_the_readout_gives_the_distances_up_to_a_constant_of_the_row():
    stosa = model()
    encoded = stosa.encode(HISTORY)
    table, bias = stosa.readout()
    from_readout = stosa.queries(encoded) @ table.T + bias
    constant = (from_readout - stosa.score(encoded))[..., 1:]
    assert torch.allclose(constant, constant[..., :1].expand_as(constant), atol=1e-4)


def test_attention_by_loops():
    """Scores, A for the means, A squared for the covariances, number by number."""
    stosa, seen = model(num_blocks=1), {}
    attention = stosa.blocks[0].attention
    attention.recorder = seen.update
    stosa.encode(HISTORY)
    # The inputs of the block, from the embeddings.
    mean = stosa.norm(stosa.items(HISTORY) + stosa.positions[-5:])
    covariance = positive(
        stosa.covariance_norm(stosa.covariance_items(HISTORY) + stosa.covariance_positions[-5:])
    )
    queries = attention.query(mean), positive(attention.covariance_query(covariance)).sqrt()
    keys = attention.key(mean), positive(attention.covariance_key(covariance)).sqrt()
    values = attention.value(mean), positive(attention.covariance_value(covariance))
    for b, h, i in ((0, 0, 3), (0, 1, 4), (1, 0, 0), (1, 1, 4)):
        part = slice(4 * h, 4 * h + 4)
        first = 2 if b == 0 else 0  # after the padding
        keys_of_i = range(first, i + 1)
        scores = [
            -sum(
                (query[b, i, part] - key[b, j, part]).square().sum()
                for query, key in zip(queries, keys, strict=True)
            )
            / 2  # sqrt(D/H) = 2
            for j in keys_of_i
        ]
        weights = torch.stack(scores).softmax(0)
        assert torch.allclose(seen["weights"][b, h, i, first : i + 1], weights, atol=1e-5)
        for power, value, sums in zip((1, 2), values, ("sums", "covariance_sums"), strict=True):
            total = sum(weights[j - first] ** power * value[b, j, part] for j in keys_of_i)
            assert torch.allclose(seen[sums][b, h, i], total, atol=1e-5)
    for name, output in (
        ("outputs", attention.output),
        ("covariance_outputs", attention.covariance_output),
    ):
        sums = seen[name.replace("outputs", "sums")].transpose(1, 2).flatten(-2)
        assert torch.allclose(seen[name], output(sums), atol=1e-6)


def test_covariances_are_positive_between_all_blocks():
    stosa, found = model(num_blocks=3), []
    for block in stosa.blocks:
        block.register_forward_hook(lambda _, __, output: found.append(output[1]))
    stosa.encode(HISTORY)
    assert len(found) == 3 and all((covariance > 0).all() for covariance in found)


def test_without_mean_attention_the_past_reaches_the_covariances_alone():
    other = HISTORY.clone()
    other[1, 0] = 8  # the oldest item of the second history
    for mean_attention, moved in ((True, True), (False, False)):
        stosa = model(mean_attention=mean_attention)
        (mean, covariance), (mean2, covariance2) = stosa.encode(HISTORY), stosa.encode(other)
        assert (not torch.allclose(mean[1, -1], mean2[1, -1], atol=1e-6)) == moved
        assert not torch.allclose(covariance[1, -1], covariance2[1, -1], atol=1e-6)


def test_the_option_leaves_the_initial_values_as_they_are():
    paper, code = model().state_dict(), model(mean_attention=False).state_dict()
    assert paper.keys() == code.keys() and all(torch.equal(paper[k], code[k]) for k in paper)


def test_the_regularizer_by_hand():
    stosa = model(num_items=3, dim=2, num_heads=1, regularization=0.5)
    with torch.no_grad():
        stosa.items.weight[1:] = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
        stosa.covariance_items.weight.zero_()  # all variances 1
    encoded = torch.tensor([[0.0, 2.0]]), torch.ones(1, 2)
    target, negatives = torch.tensor([1]), torch.tensor([[2, 3]])
    # The history is 4 from the target; the negatives are 9 and 1 from it: max(0, -5), max(0, 3).
    penalty = stosa.regularizer(encoded, target, negatives)
    assert float(penalty.detach()) == pytest.approx(0.5 * 3 / 2)
    # BPR: positive -4; negatives -(9 + 4) and -1.
    ranking = np.mean(np.logaddexp(0, [-13 + 4, -1 + 4]))
    assert float(bpr(stosa, encoded, target, negatives).detach()) == pytest.approx(ranking + 0.75)


def test_cross_entropy_is_the_softmax_of_minus_distances():
    stosa = model()
    encoded = tuple(part[:, -1] for part in stosa.encode(HISTORY))
    targets = torch.tensor([2, 7])
    expected = torch.nn.functional.cross_entropy(stosa.score(encoded)[:, 1:], targets - 1)
    assert torch.allclose(ce(stosa, encoded, targets), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["ce", "bpr"])
def test_it_learns_the_markov_world(loss):
    split = sr.leave_one_out(sr.worlds.markov(num_users=400, num_items=20, length=12))
    stosa = sr.STOSA(split.num_items, max_len=12, dim=16, num_blocks=1, dropout=0.0, seed=0)
    history = sr.fit(
        stosa, split, loss=loss, epochs=5, lr=0.01, batch_size=32, progress=False, device="cpu"
    )
    popular = sr.evaluate(sr.Popularity().fit(split), split)["NDCG@10"]
    assert sr.evaluate(stosa, split)["NDCG@10"] > popular + 0.1
    assert history.column("loss")[-1] < history.column("loss")[0]


def test_recommendations_are_the_nearest_items():
    stosa = model()
    items, scores = stosa.recommend(HISTORY, k=9)
    expected = stosa(HISTORY)[:, -1].topk(9)
    assert torch.equal(items, expected.indices) and torch.allclose(scores, expected.values)


def test_evaluation_ranks_by_distance():
    split = sr.leave_one_out(sr.worlds.markov(num_users=60, num_items=20, length=8))
    stosa = model(num_items=20, max_len=8)
    ranks = sr.evaluate(stosa, split).ranks
    for user in range(5):
        history = torch.from_numpy(split.test.histories[user])[None, -8:]
        scores = stosa(history)[0, -1]
        assert ranks[user] == 1 + (scores > scores[split.test.targets[user]]).sum()


def test_low_precision_leaves_order_and_losses():
    """2 q e - |e|^2 is of the order of 1, both terms of 2 dim: bfloat16's steps are 2 there."""
    stosa = model(num_items=300, dim=128)
    draw = torch.Generator().manual_seed(1)
    encoded = tuple(part.flatten(0, 1).detach() for part in stosa.encode(HISTORY))
    targets, *others = torch.randint(1, 301, (31, 10), generator=draw)
    negatives = torch.stack(others, 1)
    exact = [loss(stosa, encoded, targets, negatives) for loss in LOSSES.values()]
    signs = torch.sub(*_scores(stosa, encoded, targets, negatives)).sign()
    with torch.autocast("cpu", torch.bfloat16):
        low = [loss(stosa, encoded, targets, negatives) for loss in LOSSES.values()]
        assert torch.equal(torch.sub(*_scores(stosa, encoded, targets, negatives)).sign(), signs)
    torch.testing.assert_close(low, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("attention", ["wasserstein", "awrsr-stochastic"])
def test_low_precision_leaves_the_weights(attention):
    """Points are rounded, distances are not."""
    stosa = model(dim=128, max_len=50, num_heads=1, num_blocks=1, attention=attention)
    found = []
    stosa.blocks[0].attention.recorder = lambda **seen: found.append(seen)
    items = torch.randint(1, 10, (2, 50), generator=torch.Generator().manual_seed(0))
    stosa.encode(items)
    with torch.autocast("cpu", torch.bfloat16):
        stosa.encode(items)
    for what in ("scores", "weights"):
        assert (found[0][what] - found[1][what]).abs().max() < 0.05


def test_a_small_variance_keeps_its_digits_in_low_precision():
    x = torch.tensor([-2.0, -4.0, -6.0, -8.0])
    torch.testing.assert_close(positive(x.bfloat16()).float(), x.exp(), rtol=2**-8, atol=0)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="dim must be at least 1"):
        sr.STOSA(10, dim=0)
    with pytest.raises(ValueError, match="dim=9 cannot be divided"):
        sr.STOSA(10, dim=9, num_heads=2)
    with pytest.raises(ValueError, match=r"length 7 exceed max_len=6.*items\[:, -6:\]"):
        model()(torch.ones(1, 7, dtype=torch.long))
    for name in ("wasserstein", "awrsr-stochastic"):
        with pytest.raises(ValueError, match="made for Gaussians.*use STOSA"):
            sr.SASRec(10, attention=name)


def test_save_and_load(tmp_path):
    stosa = model(mean_attention=False, regularization=0.3, attention="awrsr-stochastic")
    sr.save(stosa, tmp_path / "stosa.safetensors")
    again = sr.load(tmp_path / "stosa.safetensors")
    assert again.config == stosa.config and torch.equal(again(HISTORY), stosa(HISTORY))
