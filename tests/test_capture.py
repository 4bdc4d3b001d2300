"""Capturing: what is recorded is what was computed, and looking changes nothing."""

import pytest
import torch

import seqrec_lib as sr

ITEMS = torch.tensor([[0, 0, 0, 3, 1, 4], [2, 5, 9, 2, 6, 5], [0, 0, 0, 0, 0, 7]])


def model(kind=sr.SASRec, **settings):
    settings = {"num_items": 9, "max_len": 7, "dim": 8, "num_heads": 2, "seed": 0, **settings}
    return kind(**settings)


@pytest.mark.parametrize("norm", ["post", "pre", "original"])
@pytest.mark.parametrize("attention", ["softmax", "uniform", "awrsr-additive", "uniform-loose"])
def test_outputs_are_the_same_with_and_without_capture(norm, attention):
    m = model(norm=norm, attention=attention).eval()
    expected = m(ITEMS)
    trace = sr.capture(m, ITEMS)
    assert torch.equal(m.score(trace.encoded), expected)
    assert torch.equal(m(ITEMS), expected)  # and after it


@pytest.mark.parametrize("norm", ["post", "pre", "original"])
def test_what_is_recorded_fits_together(norm):
    m = model(norm=norm)
    trace = sr.capture(m, ITEMS)
    assert len(trace) == 2 and torch.equal(trace.items, ITEMS)
    for layer, block in zip(trace, m.blocks, strict=True):
        assert layer.weights.shape == layer.scores.shape == layer.allowed.shape == (3, 2, 6, 6)
        assert layer.values.shape == layer.sums.shape == (3, 2, 6, 4)
        assert torch.allclose(layer.weights @ layer.values, layer.sums, atol=1e-6)
        assert torch.allclose(layer.residual + layer.outputs, layer.total, atol=1e-6)
        assert torch.allclose(layer.weights.sum(-1), layer.allowed.any(-1).float(), atol=1e-6)
        read = block.norm_attention(layer.inputs) if norm == "original" else layer.inputs
        assert torch.equal(layer.residual, read)
        assert layer.projection is block.attention.output
        assert layer.reading_norm is block.reading_norm
        assert not any(
            tensor.requires_grad for tensor in vars(layer).values() if torch.is_tensor(tensor)
        )


def test_a_weighting_without_scores_records_none():
    assert sr.capture(model(attention="uniform"), ITEMS)[0].scores is None


def test_only_what_is_asked_for_is_kept():
    layer = sr.capture(model(), ITEMS, keep=["weights", "total"])[1]
    kept = {
        name
        for name, value in vars(layer).items()
        if torch.is_tensor(value) and not isinstance(value, torch.nn.Module)
    }
    assert kept == {"weights", "total"}
    with pytest.raises(ValueError, match="values.*keep="):
        layer.need("values")
    with pytest.raises(ValueError, match="cannot keep attention; there are inputs"):
        sr.capture(model(), ITEMS, keep=["attention"])


def test_the_model_is_left_as_it_was():
    m = model(dropout=0.5).train()
    m.blocks[1].eval()
    modes = [module.training for module in m.modules()]
    sr.capture(m, ITEMS)
    with pytest.raises(ValueError, match="max_len"):
        sr.capture(m, torch.ones(1, 8, dtype=torch.long))
    assert [module.training for module in m.modules()] == modes
    for block in m.blocks:
        assert block.recorder is None and block.attention.recorder is None


def test_one_sequence_or_a_list_may_be_given():
    m = model()
    one = sr.capture(m, ITEMS[1])
    assert torch.equal(one[0].weights, sr.capture(m, [ITEMS[1].tolist()])[0].weights)
    assert one[0].weights.shape == (1, 2, 6, 6)


def test_stosa_has_a_path_of_means_and_one_of_covariances():
    m = model(sr.STOSA).eval()
    trace = sr.capture(m, ITEMS)
    assert all(map(torch.equal, trace.encoded, m.encode(ITEMS)))
    for layer, block in zip(trace, m.blocks, strict=True):
        covariance = layer.covariance
        assert torch.equal(covariance.weights, layer.weights**2)
        for path in (layer, covariance):
            assert torch.allclose(path.weights @ path.values, path.sums, atol=1e-6)
            out = path.projection(path.sums.transpose(1, 2).flatten(-2))
            assert torch.allclose(out, path.outputs, atol=1e-6)
            assert torch.allclose(path.residual + path.outputs, path.total, atol=1e-6)
        assert covariance.projection is block.attention.covariance_output
        assert (covariance.inputs > 0).all()  # covariances
    assert not any(block._forward_pre_hooks for block in m.blocks)
    assert sr.capture(m, ITEMS, keep=["weights"])[0].covariance.total is None


def test_cuda_and_cpu_agree():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    m = model()
    here = sr.decompose(sr.capture(m, ITEMS)[1]).attn_res_ln
    there = sr.decompose(sr.capture(m.cuda(), ITEMS)[1]).attn_res_ln
    assert torch.allclose(there.norms.cpu(), here.norms, atol=1e-5)
    assert torch.allclose(there.mixing_ratio.cpu(), here.mixing_ratio, atol=1e-5, equal_nan=True)
