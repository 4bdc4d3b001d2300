"""What a model computed: the tensors inside its attention blocks, for some sequences.

There is one code path for attention, with explicit weights, so looking changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..evaluation.ranking import evaluating
from ..models.sasrec import checked_items
from ..models.stosa import StochasticBlock

__all__ = ["FIELDS", "LayerTrace", "Trace", "capture"]

#: What can be kept of a layer.
FIELDS = ("inputs", "residual", "total", "scores", "weights", "values", "sums", "outputs",
          "allowed")  # fmt: skip


@dataclass
class LayerTrace:
    """What one block computed. Fields that were not asked for are None.

    Attributes:
        inputs: (B, L, D) what the block received.
        residual: (B, L, D) what is added to the attention's output: the inputs ("post", "pre")
            or their LayerNorm ("original"), times ``Block.residual_scale``.
        total: (B, L, D) z, the residual plus the attention's output.
        scores: (B, H, L, L) before mask and softmax; None for weightings that read none.
        weights: (B, H, query, key).
        values: (B, H, L, D/H), x_j W_V + b_V.
        sums: (B, H, L, D/H), weights times values.
        outputs: (B, L, D), the sums through W_O and b_O.
        allowed: (B, H, L, L) bool, True where the query may see the key.
        projection: the layer that holds W_O and b_O; None where there is none. This and
            ``reading_norm`` are the model's own modules, not copies.
        reading_norm: the LayerNorm that reads ``total``.
        covariance: STOSA only: the same of the covariances' path, whose weights are A^2 and
            whose outputs are taken before the ELU.
    """

    inputs: Tensor | None = None
    residual: Tensor | None = None
    total: Tensor | None = None
    scores: Tensor | None = None
    weights: Tensor | None = None
    values: Tensor | None = None
    sums: Tensor | None = None
    outputs: Tensor | None = None
    allowed: Tensor | None = None
    projection: nn.Linear | None = None
    reading_norm: nn.LayerNorm | None = None
    covariance: LayerTrace | None = None

    def need(self, *names: str) -> tuple:
        """The fields of these names.

        Raises:
            ValueError: one of them was not kept.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"this needs {', '.join(missing)} of the layer, which the trace does not hold: "
                "add them to capture(..., keep=...), or, where the model has none of it, "
                "set the field (dataclasses.replace)"
            )
        return tuple(getattr(self, name) for name in names)

    def with_residual(self, residual: Tensor, reading_norm: nn.LayerNorm | None) -> LayerTrace:
        """A copy that also knows what is added to ``outputs``, and what reads the sum.

        For attention layers that stand alone in a model (:func:`capture_torch`).

        Args:
            residual: (B, L, D).
            reading_norm: the LayerNorm of the sum; None where there is none.
        """
        (outputs,) = self.need("outputs")
        return replace(self, residual=residual, total=residual + outputs, reading_norm=reading_norm)


class Trace(list):
    """One :class:`LayerTrace` per block, the first first.

    Attributes:
        items: (B, L) what was read.
        encoded: what ``model.encode(items)`` gave.
    """

    def __init__(self, layers: Iterable[LayerTrace], items: Tensor | None, encoded):
        super().__init__(layers)
        self.items, self.encoded = items, encoded


@torch.no_grad()
def capture(model, items, keep: str | Iterable[str] | None = None) -> Trace:
    """Run ``model.encode(items)`` in evaluation mode and keep what its blocks computed.

    The model's outputs are those it gives without being looked at, bit for bit, and the model
    is left as it was. Interventions in force are captured as they act.

    Args:
        items: (B, L), or one sequence (L,); 0 = padding on the left.
        keep: which of :data:`FIELDS`; all by default. What is left out is freed at once: a map
            of weights is B H L^2 numbers, everything else far less.

    Raises:
        TypeError: ``items`` are no whole numbers.
        ValueError: ``keep`` names something unknown, or the model cannot read ``items``.
    """
    keep = set(FIELDS if keep is None else [keep] if isinstance(keep, str) else keep)
    if unknown := keep - set(FIELDS):
        raise ValueError(f"cannot keep {', '.join(sorted(unknown))}; there are {', '.join(FIELDS)}")
    items = torch.atleast_2d(checked_items(model, items))
    layers = [
        LayerTrace(projection=block.attention.output, reading_norm=block.reading_norm)
        for block in model.blocks
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model, None))
        for layer, block in zip(layers, model.blocks, strict=True):
            stack.enter_context(_recording(layer, block, keep))
        encoded = model.encode(items)
    return Trace(layers, items, encoded)


@contextlib.contextmanager
def _recording(layer: LayerTrace, block: nn.Module, keep: set[str]) -> Iterator[None]:
    """Let ``block`` write what it computes into ``layer``."""

    def record(**tensors) -> None:
        for name in keep & tensors.keys():
            setattr(layer, name, tensors[name])
        if layer.covariance is not None and "covariance_values" in tensors:
            tensors["covariance_weights"] = tensors["weights"].square()
            tensors["covariance_allowed"] = tensors["allowed"]
            for name in keep:
                if (tensor := tensors.get(f"covariance_{name}")) is not None:
                    setattr(layer.covariance, name, tensor)

    recorders, hooks = (block.recorder, block.attention.recorder), []
    if isinstance(block, StochasticBlock):
        layer.covariance = LayerTrace(
            projection=block.attention.covariance_output,
            reading_norm=block.covariance_norm_attention,
        )
        hooks = _covariance_hooks(layer.covariance, block, keep)
    block.recorder = block.attention.recorder = record
    try:
        yield
    finally:
        block.recorder, block.attention.recorder = recorders
        for hook in hooks:
            hook.remove()


def _covariance_hooks(layer: LayerTrace, block: StochasticBlock, keep: set[str]) -> list:
    """The residual and the sum of the covariances' path, which its block does not record."""

    def received(module, inputs) -> None:
        for name in keep & {"inputs", "residual"}:
            setattr(layer, name, inputs[1])

    def summed(module, inputs) -> None:
        if "total" in keep:
            layer.total = inputs[0]

    return [
        block.register_forward_pre_hook(received),
        block.covariance_norm_attention.register_forward_pre_hook(summed),
    ]
