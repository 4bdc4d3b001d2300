"""What training minimises: the next item against all others, or against a few.

Every loss has the form ``loss(model, encoded, targets, negatives)`` on flat positions:
``encoded`` (n, D) is what the model knows at n positions, ``targets`` (n,) the items that came
next, ``negatives`` (n, k) items that did not (None for ``"ce"``). It returns the mean over
positions, a scalar.

Where the readout has a bias, ``torch.autocast`` does not reach the scores: with STOSA's they are
differences of large numbers, of which a low precision leaves nothing.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import full_precision

__all__ = ["LOSSES", "bce", "bpr", "ce", "chunked_cross_entropy", "sampled_ce"]


def ce(model, encoded, targets: Tensor, negatives: None = None) -> Tensor:
    """Cross-entropy of the target among all items."""
    table, bias = model.readout()
    with full_precision_if(bias):
        return chunked_cross_entropy(
            model.queries(encoded), table[1:], targets - 1, None if bias is None else bias[1:]
        )


def sampled_ce(model, encoded, targets: Tensor, negatives: Tensor) -> Tensor:
    """Cross-entropy of the target among itself and its sampled negatives."""
    positive, negative = _scores(model, encoded, targets, negatives)
    return (torch.cat([positive, negative], 1).logsumexp(1) - positive[:, 0]).mean()


def bce(model, encoded, targets: Tensor, negatives: Tensor) -> Tensor:
    """Binary cross-entropy, one negative by default (Kang & McAuley 2018, eq. 7).

    With k negatives their terms are summed. As in the authors' code it is the mean over
    positions of both terms' sum.
    """
    positive, negative = _scores(model, encoded, targets, negatives)
    return (F.softplus(-positive).sum(1) + F.softplus(negative).sum(1)).mean()


def bpr(model, encoded, targets: Tensor, negatives: Tensor) -> Tensor:
    """-log sigmoid(positive - negative) (Rendle et al. 2009), mean over negatives.

    A model with a ``regularizer(encoded, targets, negatives)`` adds it (STOSA).
    """
    positive, negative = _scores(model, encoded, targets, negatives)
    loss = F.softplus(negative - positive).mean()
    penalty = getattr(model, "regularizer", None)
    return loss if penalty is None else loss + penalty(encoded, targets, negatives)


LOSSES = {"ce": ce, "sampled_ce": sampled_ce, "bce": bce, "bpr": bpr}


def _scores(model, encoded, targets, negatives):
    """Scores of the targets (n, 1) and of the negatives (n, k), without scoring all items."""
    table, bias = model.readout()
    items = torch.cat([targets[:, None], negatives], 1)
    with full_precision_if(bias):
        queries = model.queries(encoded).to(table.dtype)
        scores = torch.einsum("nd,nkd->nk", queries, F.embedding(items, table))
    if bias is not None:
        scores = scores + bias[items]
    return scores[:, :1], scores[:, 1:]


def full_precision_if(bias: Tensor | None) -> contextlib.AbstractContextManager:
    """No autocast where there is a bias: what it is added to may be large and cancel with it."""
    return contextlib.nullcontext() if bias is None else full_precision(bias.device)


def chunked_cross_entropy(
    queries: Tensor,
    table: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Mean cross-entropy of ``queries @ table.T + bias`` without ever holding it whole.

    Loss and gradient are formed together, ``chunk`` positions at a time, while the chunk's
    logits are still in the cache: for a row with softmax p and target t,
    d/dq = sum_j p_j e_j - e_t and d/de_j = (p_j - [j = t]) q. Under ``torch.autocast`` the
    matrix products take its type; sums over positions stay in the table's.

    Args:
        queries: (n, D). table: (V, D). targets: (n,) rows of the table. bias: (V,) or None.
        chunk: by default as many as make some 2^20 logits, but 64 (in a lower precision 256) to
            512: larger catalogues gain most (``benchmarks/bench_loss.py``). On a GPU, where each
            kernel costs its start, as many as make 2^26.

    Raises:
        ValueError: n is 0.
    """
    if not len(targets):
        raise ValueError("no position to compute a loss on: no sequence has two items")
    kind = table.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if mixed else table.dtype
    if chunk is None and kind == "cpu":
        chunk = _chunk(len(table), 64 if dtype == table.dtype else 256)
    elif chunk is None:
        chunk = max(512, 2**26 // len(table))
    return _ChunkedCrossEntropy.apply(queries, table, targets, bias, chunk, dtype)


def _chunk(items: int, least: int) -> int:
    """Positions whose logits stay in a core's cache; by 64, see the padding below."""
    return min(max(2**20 // items // 64 * 64, least), 512)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, table, targets, bias, chunk, dtype):
        wanted = any(ctx.needs_input_grad)
        with full_precision(table.device):
            q, e = queries.to(dtype), table.to(dtype)
            n = len(targets)
            if dtype != table.dtype:
                # Zeros up to a round number: a CPU keeps megabytes of compiled code for each
                # shape of a low-precision product that it has met.
                q = F.pad(q, (0, 0, 0, -n % 64))
            d_queries = torch.empty_like(q) if wanted else None
            d_table = torch.zeros_like(table) if wanted else None
            d_bias = torch.zeros_like(bias) if wanted and bias is not None else None
            logits = q.new_empty(min(chunk, len(q)), len(e))
            softmax = torch.empty_like(logits)
            losses = []
            for start in range(0, n, chunk):
                rows = min(chunk, n - start)
                part = q[start : start + chunk]
                s, p = logits[: len(part)], softmax[: len(part)]
                torch.mm(part, e.T, out=s)
                if bias is not None:
                    s += bias
                torch.softmax(s, -1, out=p)
                # the smallest normal number keeps the reported loss finite where p underflows
                chosen = p[:rows].gather(1, targets[start : start + rows, None]).to(table.dtype)
                losses.append(-chosen.clamp(min=torch.finfo(table.dtype).tiny).log().sum())
                if wanted:
                    torch.mm(p, e, out=d_queries[start : start + chunk])
                    _add_product(d_table, p.T, part)
                    if d_bias is not None:
                        d_bias += p[:rows].sum(0)
            if wanted:
                d_queries = d_queries[:n].to(queries.dtype) - e[targets].to(queries.dtype)
                d_table.index_add_(0, targets, queries.to(table.dtype), alpha=-1)
                if d_bias is not None:
                    d_bias.index_add_(0, targets, d_bias.new_full((), -1).expand(n))
        ctx.save_for_backward(d_queries, d_table, d_bias)
        ctx.count = n
        return torch.stack(losses).sum() / ctx.count

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():  # create_graph=True; what forward has kept would be constants
            raise RuntimeError(
                "the chunked loss has no second derivative; for one, use "
                "torch.nn.functional.cross_entropy(model.score(..), targets)"
            )
        scale = gradient / ctx.count
        d_queries, d_table, d_bias = ctx.saved_tensors
        d_bias = None if d_bias is None else d_bias * scale
        return d_queries * scale.to(d_queries.dtype), d_table * scale, None, d_bias, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in place, the sum in ``total``'s type."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
