"""A door for other models: PyTorch's own attention layers, captured as the library's are."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluation.ranking import evaluating
from .capture import LayerTrace, Trace

__all__ = ["capture_torch"]

_SIGNATURE = inspect.signature(nn.MultiheadAttention.forward)


@torch.no_grad()
def capture_torch(model: nn.Module, *args, **kwargs) -> Trace:
    """Run ``model(*args, **kwargs)`` and keep what each ``nn.MultiheadAttention`` computed.

    ::

        trace = sr.capture_torch(my_model, batch)
        sr.decompose(trace[0]).attn.mixing_ratio

    The model may be, or contain, ``nn.MultiheadAttention``, ``nn.TransformerEncoderLayer``,
    ``nn.TransformerEncoder``. A layer of the latter kinds knows its residual and its LayerNorms,
    and all of :func:`decompose` works. An attention on its own does not: until it is told, by
    ``trace[0].with_residual(residual, norm)``, there are ``weights`` and ``attn``.

    It runs in evaluation mode and without PyTorch's fused kernels, which show no weights: the
    outputs are those of the model, up to rounding.

    Returns:
        One :class:`LayerTrace` per call of an attention, in the order of the calls, batch first
        whatever the layer's layout; ``scores`` are not kept. ``trace.encoded`` is what the model
        returned, ``trace.items`` is None.

    Raises:
        ValueError: there is no such layer in the model, or one attends from one sequence to
            another, or adds keys of its own.
    """
    layers: list[LayerTrace] = []
    fast = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model, None))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        for module in model.modules():
            for hook in _hooks(module, layers):
                stack.callback(hook.remove)
        returned = model(*args, **kwargs)
    if not layers:
        raise ValueError(f"{type(model).__name__} called no nn.MultiheadAttention: nothing to "
                         "capture. For attention of your own, fill a LayerTrace with weights, "
                         "values and allowed")  # fmt: skip
    return Trace(layers, None, returned)


def _hooks(module: nn.Module, layers: list[LayerTrace]) -> list:
    if isinstance(module, nn.MultiheadAttention):
        calls: list[tuple[dict[str, Any], tuple[bool, bool]]] = []

        def ask(mha, args, kwargs):
            """Let the attention return the weights of each head."""
            call = _SIGNATURE.bind(mha, *args, **kwargs)
            call.apply_defaults()
            asked = call.arguments["need_weights"], call.arguments["average_attn_weights"]
            call.arguments.update(need_weights=True, average_attn_weights=False)
            calls.append((call.arguments, asked))
            return call.args[1:], call.kwargs

        def answer(mha, args, output):
            """Note them, and hand on what was asked for."""
            call, (needed, averaged) = calls.pop()
            outputs, weights = output
            layers.append(_layer(mha, call, outputs, weights))
            heads = weights.dim() - 3
            return outputs, (weights.mean(heads) if averaged else weights) if needed else None

        return [module.register_forward_pre_hook(ask, with_kwargs=True),
                module.register_forward_hook(answer)]  # fmt: skip

    if isinstance(module, nn.TransformerEncoderLayer):
        sources: list[Tensor] = []
        reading_norm = module.norm2 if module.norm_first else module.norm1

        def received(layer, args, kwargs):
            sources.append(args[0] if args else kwargs["src"])

        def summed(norm, args):
            """The LayerNorm that reads z is called right after the attention."""
            layout = lambda x: _batch_first(x, module.self_attn)  # noqa: E731
            layers[-1].residual, layers[-1].total = layout(sources.pop()), layout(args[0])
            layers[-1].reading_norm = reading_norm

        return [module.register_forward_pre_hook(received, with_kwargs=True),
                reading_norm.register_forward_pre_hook(summed)]  # fmt: skip
    return []


def _layer(mha: nn.MultiheadAttention, call: dict, outputs: Tensor, weights: Tensor) -> LayerTrace:
    query, value = (_batch_first(call[name], mha) for name in ("query", "value"))
    if query.shape[:2] != value.shape[:2] or mha.bias_k is not None or mha.add_zero_attn:
        raise ValueError(
            f"cannot take apart {mha}: here each position must look at the positions of its own "
            "sequence; cross-attention, bias_k, bias_v and add_zero_attn are not supported"
        )
    weights = weights if weights.dim() == 4 else weights[None]
    width = mha.embed_dim
    matrix = mha.v_proj_weight if mha.in_proj_weight is None else mha.in_proj_weight[2 * width :]
    bias = None if mha.in_proj_bias is None else mha.in_proj_bias[2 * width :]
    values = F.linear(value, matrix, bias).unflatten(-1, (mha.num_heads, -1)).transpose(1, 2)
    return LayerTrace(
        inputs=query, weights=weights, values=values, sums=weights @ values,
        outputs=_batch_first(outputs, mha), projection=mha.out_proj,
        allowed=_allowed(call["attn_mask"], call["key_padding_mask"], weights),
    )  # fmt: skip


def _allowed(mask: Tensor | None, padding: Tensor | None, weights: Tensor) -> Tensor:
    """(B, H, query, key) from PyTorch's masks, in which True, or -inf, forbids."""
    allowed = torch.ones_like(weights, dtype=torch.bool)
    visible = lambda x: ~x if x.dtype == torch.bool else x > -torch.inf  # noqa: E731
    if mask is not None:
        seen = visible(mask)  # (L, L), or (B * H, L, L)
        allowed = allowed & (seen if seen.dim() == 2 else seen.view_as(weights))
    if padding is not None:
        real = torch.atleast_2d(visible(padding))
        allowed = allowed & real[:, None, None, :] & real[:, None, :, None]
    return allowed


def _batch_first(x: Tensor, mha: nn.MultiheadAttention) -> Tensor:
    if x.dim() == 2:
        return x[None]
    return x if mha.batch_first else x.transpose(0, 1)
