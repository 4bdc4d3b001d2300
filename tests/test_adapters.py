"""PyTorch's own layers, captured and decomposed, against what they really return."""

import pytest
import torch
from torch import nn

import seqrec_lib as sr

LENGTH, WIDTH = 6, 8
CAUSAL = torch.ones(LENGTH, LENGTH).triu(1).bool()  # True forbids, in PyTorch's masks
PADDING = torch.zeros(3, LENGTH, dtype=torch.bool)
PADDING[0, 4:] = True  # on the right: under a causal mask a row must have something to see


def randomized(module):
    """Biases and LayerNorms that are 0 and 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def x(seed=1, batch=3):
    return torch.randn(batch, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"vdim": 8, "kdim": 8}])
@pytest.mark.parametrize("mask", [None, CAUSAL, CAUSAL.expand(6, 6, 6), "added"])
def test_multihead_attention(settings, mask):
    mha = randomized(nn.MultiheadAttention(WIDTH, 2, batch_first=True, **settings))
    if settings.get("vdim"):  # the layout for keys and values of other widths
        mha._qkv_same_embed_dim = False
        mha.v_proj_weight = nn.Parameter(mha.in_proj_weight[16:].detach().clone())
        mha.k_proj_weight = nn.Parameter(mha.in_proj_weight[8:16].detach().clone())
        mha.q_proj_weight = nn.Parameter(mha.in_proj_weight[:8].detach().clone())
        mha.register_parameter("in_proj_weight", None)
    padding = PADDING
    if isinstance(mask, str):  # masks of -inf and 0 instead of True and False
        mask, padding = (torch.zeros(m.shape).masked_fill(m, -torch.inf) for m in (CAUSAL, PADDING))
    real, average = mha(x(), x(), x(), attn_mask=mask, key_padding_mask=padding)
    trace = sr.capture_torch(mha, x(), x(), x(), attn_mask=mask, key_padding_mask=padding)
    assert error(trace.encoded[0], real) < 1e-5
    assert torch.allclose(trace.encoded[1], average, atol=1e-6)  # averaged, as it was asked to be
    (layer,) = trace
    assert torch.allclose(layer.weights.mean(1), average, atol=1e-6)
    parts = sr.decompose(layer)
    assert error(parts.attn.total, real) < 1e-5
    assert torch.equal(parts.attn.mixing_ratio.isnan(), PADDING)
    causal = torch.ones(LENGTH, LENGTH).tril().bool() if mask is not None else True
    expected = ~PADDING[:, None, None, :] & ~PADDING[:, None, :, None] & causal
    assert torch.equal(layer.allowed, expected.expand(3, 2, LENGTH, LENGTH))
    with pytest.raises(ValueError, match="residual"):
        _ = parts.attn_res


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_transformer_encoder_layer(norm_first, batch_first, num_heads):
    block = randomized(
        nn.TransformerEncoderLayer(
            WIDTH, num_heads, dim_feedforward=16, batch_first=batch_first, norm_first=norm_first
        )
    )
    layout = (lambda t: t) if batch_first else (lambda t: t.transpose(0, 1))
    real = block(layout(x()), src_mask=CAUSAL, src_key_padding_mask=PADDING)
    trace = sr.capture_torch(block, layout(x()), src_mask=CAUSAL, src_key_padding_mask=PADDING)
    parts = sr.decompose(trace[0])
    for kind in ("attn", "attn_res"):
        norms = parts[kind].norms
        assert (norms[PADDING] == 0).all() and (norms[~PADDING].sum(-1) > 0).all()
    assert error(trace.encoded, real) < 1e-5
    (layer,) = trace
    assert torch.equal(layer.residual, x())
    parts = sr.decompose(layer)
    assert error(parts.attn.total, layer.outputs) < 1e-5
    # The rest of the layer, fed with what the terms add up to, gives the layer's real output.
    if norm_first:
        rest = parts.attn_res.total + block._ff_block(parts.attn_res_ln.total)
    else:
        u = parts.attn_res_ln.total
        rest = block.norm2(u + block._ff_block(u))
    assert error(layout(rest.detach()), real) < 1e-5


def test_an_encoder_in_a_model_of_ones_own():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.items = nn.Embedding(20, WIDTH)
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.5, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 3)

        def forward(self, items):
            return self.encoder(
                self.items(items), mask=CAUSAL, is_causal=True, src_key_padding_mask=PADDING
            )

    model = randomized(Model())
    items = torch.randint(1, 20, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    expected = model(items).detach()
    model.train()
    trace = sr.capture_torch(model, items)
    assert model.training and torch.backends.mha.get_fastpath_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert error(trace.encoded[~PADDING], expected[~PADDING]) < 1e-5
    assert len(trace) == 3
    for layer, block in zip(trace, model.encoder.layers, strict=True):
        assert layer.reading_norm is block.norm1
        read = block.norm1(layer.total).detach()
        assert error(sr.decompose(layer).attn_res_ln.total, read) < 1e-5
    shares = sr.rollout(trace, "attn_res_ln")
    assert torch.allclose(shares[~PADDING].sum(-1), torch.ones(int((~PADDING).sum())))


def test_attention_that_stands_alone_is_told_its_residual():
    """The block of a widely copied PyTorch SASRec: z = q + Attn(q, x, x), q = LN(x)."""
    norm, reading = randomized(nn.LayerNorm(WIDTH)), randomized(nn.LayerNorm(WIDTH))
    mha = randomized(nn.MultiheadAttention(WIDTH, 2))
    block = x().transpose(0, 1)
    q = norm(block).detach()
    (layer,) = sr.capture_torch(mha, q, block, block, attn_mask=CAUSAL)
    layer = layer.with_residual(layer.inputs, reading)
    real = reading(q + mha(q, block, block, attn_mask=CAUSAL)[0]).detach()
    assert error(sr.decompose(layer).attn_res_ln.total.transpose(0, 1), real) < 1e-5


def test_one_sequence_without_a_batch():
    mha = randomized(nn.MultiheadAttention(WIDTH, 2))
    one = x()[0]
    real, weights = mha(one, one, one, average_attn_weights=False)
    trace = sr.capture_torch(mha, one, one, one, average_attn_weights=False)
    assert torch.allclose(trace.encoded[1], weights, atol=1e-6)
    assert error(sr.decompose(trace[0]).attn.total[0], real) < 1e-5
    assert sr.capture_torch(mha, one, one, one, need_weights=False).encoded[1] is None


def test_what_cannot_be_taken_apart_is_refused():
    mha = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    with pytest.raises(ValueError, match="cross-attention"):
        sr.capture_torch(mha, x(), x()[:, :3], x()[:, :3])
    extra = nn.MultiheadAttention(WIDTH, 2, batch_first=True, add_bias_kv=True)
    with pytest.raises(ValueError, match="bias_k"):
        sr.capture_torch(extra, x(), x(), x())
    with pytest.raises(ValueError, match="no nn.MultiheadAttention"):
        sr.capture_torch(nn.Linear(WIDTH, 2), x())
    assert torch.backends.mha.get_fastpath_enabled() and not mha._forward_hooks
