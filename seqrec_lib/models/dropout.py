"""Dropout whose random numbers do not cost more than the matrix products around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Dropout"]


class Dropout(nn.Dropout):
    """``nn.Dropout``; on a CPU it draws 16 random bits for an entry instead of a float.

    torch's own CPU dropout draws one number at a time on one thread and takes a third of
    SASRec's training step (``benchmarks/bench_dropout.py``). The probability is rounded to a
    multiple of 2^-16, and the scale fits the rounded one, so the mean is exact.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu" or not 0 < self.p < 1:
            return F.dropout(x, self.p, self.training)
        return _Drop.apply(x, min(round(self.p * 2**16), 2**16 - 1))


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, level):
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        keep = (bits.view(torch.int16)[: x.numel()] >= level - 2**15).view(x.shape)
        keep = keep.view(torch.uint8)  # torch multiplies by bytes faster than by booleans
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - level / 2**16)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, gradient):
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None
