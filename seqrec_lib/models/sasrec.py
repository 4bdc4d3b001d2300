"""SASRec: self-attentive sequential recommendation (Kang & McAuley 2018, arXiv 1808.09781)."""

from __future__ import annotations

import contextlib
import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Block, allowed_pairs
from .dropout import Dropout
from .loose import LooseUniformAttention
from .weighting import WEIGHTINGS, Weighting, describe_weighting, make_weighting

__all__ = ["SASRec", "SequentialModel", "checked_items"]


class SequentialModel(nn.Module):
    """What every neural model of the library shares: blocks, a swappable weighting, ranking.

    A model defines ``encode(items)``, ``queries(encoded)`` and ``readout()``; the score of item
    j is then ``queries @ table[j] + bias[j]``, up to a constant of the row.

    Attributes:
        config: the constructor's arguments, as plain data, but for the seed.
        seed: of the initial values; None where torch's generator drew them.
        gaussian: whether scores compare Gaussians, which some weightings ask for.
    """

    gaussian = False
    seed: int | None = None
    blocks: nn.ModuleList

    def __init__(
        self, num_items: int, max_len: int, dim: int, num_blocks: int, num_heads: int, **more: Any
    ):
        """Check and keep the sizes; ``more`` are the other arguments for :attr:`config`."""
        super().__init__()
        sizes = {"num_items": num_items, "max_len": max_len, "dim": dim, "num_heads": num_heads,
                 "num_blocks": num_blocks}  # fmt: skip
        for what, size in sizes.items():
            if not isinstance(size, Integral):
                raise ValueError(f"{what} must be a whole number, got {size!r}")
            if size < 1:
                raise ValueError(f"{what} must be at least 1, got {size}")
        self.config: dict[str, Any] = {**sizes, **more}
        self.num_items, self.max_len, self.dim = num_items, max_len, dim
        self.num_blocks, self.num_heads = num_blocks, num_heads

    def set_weighting(self, attention: str | dict[str, Any] | Weighting) -> None:
        """Make every block's weights the way ``attention`` says.

        Raises:
            ValueError: no weighting has that name and settings, or it does not suit this model;
                "uniform-loose" has other parameters: no model comes to it or leaves it.
        """
        if self.departures():
            raise ValueError(
                "the model is under an intervention, which would undo this when it ends: "
                "call set_weighting outside the `with intervene(..)`"
            )
        loose, now = LooseUniformAttention.name, self.config.get("attention")
        if now is not None and (attention == loose) != (now == loose):
            raise ValueError(
                f"{loose!r} and the other forms have different parameters, so a trained model "
                f"keeps its own: make a new model with attention={describe_weighting(attention)!r}"
            )
        self.check_weighting(attention)
        if attention == loose:
            for block in self.blocks:
                block.attention = LooseUniformAttention(block.attention)
            self.config["attention"] = attention
            return
        for layer, block in enumerate(self.blocks):
            weighting = make_weighting(attention)
            weighting.build(layer, self.num_heads, self.max_len)
            block.attention.weighting = weighting.to(next(self.parameters()))
        self.config["attention"] = describe_weighting(attention)

    def departures(self) -> dict[str, Any]:
        """What interventions have changed beyond :attr:`config`, as plain data; empty for none."""
        found = {"reading": repr(self.encode)} if "encode" in vars(self) else {}
        for name, module in self.named_modules():  # of any model, a reader's own, too
            if getattr(module, "name", None) == "intervened":
                found[name] = module.describe()
            if (scale := getattr(module, "residual_scale", 1)) != 1:
                found[f"{name}.residual_scale"] = scale
        return found

    @classmethod
    def check_weighting(cls, attention: str | dict[str, Any] | Weighting) -> None:
        """Raise ValueError where ``attention`` is no weighting, or none for this kind of model."""
        if attention == LooseUniformAttention.name:
            if cls.gaussian:
                raise ValueError(
                    f"{attention!r} is a form of SASRec; for {cls.__name__} "
                    "there is the strict form, 'uniform'"
                )
            return
        weighting = make_weighting(attention)
        if weighting.gaussian and not cls.gaussian:
            raise ValueError(
                f"the weighting {weighting.name!r} is made for Gaussians, and "
                f"{cls.__name__} has none; use STOSA, or another of "
                f"{', '.join(n for n, w in WEIGHTINGS.items() if not w.gaussian)}"
            )

    def check_items(self, items: Tensor) -> None:
        """Raise ValueError where ``items`` (B, L) is not what the model can read."""
        if items.dim() != 2:
            raise ValueError(f"items must be (batch, length), got shape {tuple(items.shape)}")
        if items.shape[1] == 0:
            raise ValueError("sequences of length 0: there is nothing to read")
        if items.shape[1] > self.max_len:
            raise ValueError(
                f"sequences of length {items.shape[1]} exceed max_len={self.max_len}; "
                f"keep the last {self.max_len} items: items[:, -{self.max_len}:]"
            )

    def forward(self, items: Tensor) -> Tensor:
        """items (B, L), 0 = padding on the left -> logits (B, L, num_items + 1)."""
        return self.score(self.encode(items))

    def score(self, encoded: Tensor) -> Tensor:
        """Logits of every item, (..., num_items + 1); padding's, [..., 0], is -inf."""
        table, bias = self.readout()
        logits = self.queries(encoded) @ table.T
        logits = logits if bias is None else logits + bias
        logits[..., 0] = -math.inf
        return logits

    @torch.no_grad()
    def recommend(self, items, k: int = 10, exclude_seen: bool = False) -> tuple[Tensor, Tensor]:
        """The k best next items after one sequence (L,) or several (B, L).

        Args:
            exclude_seen: leave out what the sequence already holds.

        Returns:
            (item ids, scores), each (k,) or (B, k), best first.

        Raises:
            TypeError: ``items`` are no whole numbers.
            ValueError: an item is unknown, a sequence does not end in an item, there are not
                ``k`` items to recommend, or scores are NaN.
        """
        items = checked_items(self, items)
        batch = torch.atleast_2d(items)[:, -self.max_len :]
        if not 1 <= k <= self.num_items:
            raise ValueError(f"k={k} must lie between 1 and the number of items, {self.num_items}")
        if batch.shape[1] == 0 or (batch[:, -1] == 0).any():
            raise ValueError("a sequence must end in an item; padding (0) stands on the left")
        with evaluation_mode(self):
            scores = self.score(last_position(self.encode(batch)))
        if exclude_seen:
            scores = scores.scatter(1, torch.atleast_2d(items), -math.inf)
        best = scores.topk(k)
        if best.values.isnan().any():
            raise ValueError("scores are NaN: the model's parameters are no longer finite")
        if best.values.isinf().any():
            raise ValueError(f"fewer than k={k} items are left after those already seen")
        if items.dim() == 1:
            return best.indices[0], best.values[0]
        return best.indices, best.values


class SASRec(SequentialModel):
    """A causal transformer over a user's items that scores every item as the next.

    h0 = E sqrt(D) + P; then ``num_blocks`` blocks; the output is compared with the input
    embeddings E. Positions are aligned to the end: the last slot is always the most recent item.

    Args:
        num_items: items are numbered 1..num_items; 0 is padding, on the left.
        max_len: n, the longest sequence the model reads.
        dim: D, the width.
        norm: where the LayerNorms stand: "post", "pre" or "original"; see :class:`Block`.
        attention: how weights are made: a name of ``WEIGHTINGS``, or a ``Weighting``; or
            "uniform-loose", see :class:`LooseUniformAttention`.
        seed: initial values from this seed, leaving torch's generator as it was; None draws
            from torch's generator. Models that differ in ``attention`` alone start equal.

    Raises:
        ValueError: a size is not positive, or dim is not a multiple of num_heads.
    """

    def __init__(
        self,
        num_items: int,
        max_len: int = 50,
        dim: int = 64,
        num_blocks: int = 2,
        num_heads: int = 1,
        dropout: float = 0.2,
        norm: str = "post",
        attention: str | dict[str, Any] | Weighting = "softmax",
        seed: int | None = None,
    ):
        super().__init__(num_items, max_len, dim, num_blocks, num_heads, dropout=dropout, norm=norm)
        self.seed = seed
        with seeded(seed):
            self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
            self.positions = nn.Parameter(torch.empty(max_len, dim))
            self.blocks = nn.ModuleList(
                Block(dim, num_heads, dropout, norm) for _ in range(num_blocks)
            )
            # The LayerNorm outside the blocks: before the first ("post") or after the last.
            self.norm = nn.LayerNorm(dim)
            self.dropout = Dropout(dropout)
            self.reset_parameters()
            self.set_weighting(attention)  # last, so that all else starts equal

    def reset_parameters(self) -> None:
        """N(0, 0.05^2) for the embeddings; the blocks keep torch's own initial values.

        With Xavier's, three times as large, the sublayers drown the residual at the start, and
        Beauty takes twice as many epochs to the same validation score.
        """
        nn.init.normal_(self.items.weight, std=0.05)
        nn.init.normal_(self.positions, std=0.05)
        with torch.no_grad():
            self.items.weight[0] = 0

    def encode(self, items: Tensor) -> Tensor:
        """items (B, L), on any device -> what the model knows after each of them, (B, L, D)."""
        self.check_items(items)
        items = items.to(self.positions.device)
        allowed = allowed_pairs(items)
        x = self.items(items) * math.sqrt(self.dim) + self.positions[-items.shape[1] :]
        x = self.dropout(x)
        if self.config["norm"] == "post":
            x = self.norm(x)
        for block in self.blocks:
            x = block(x, allowed)
        return x if self.config["norm"] == "post" else self.norm(x)

    def queries(self, encoded: Tensor) -> Tensor:
        """What is compared with the items: the encoded positions themselves."""
        return encoded

    def readout(self) -> tuple[Tensor, None]:
        """(the item embeddings (num_items + 1, D), no bias)."""
        return self.items.weight, None


def checked_items(model, items) -> Tensor:
    """``items``, (L,) or (B, L), as int64 on the model's device, checked.

    For what users pass: an unknown number would spoil the process of a GPU. Not for ``encode``,
    since looking at numbers makes a GPU wait.

    Raises:
        TypeError: they are no whole numbers.
        ValueError: one is not in 0..num_items, or padding stands after an item.
    """
    items = torch.as_tensor(items)
    if items.numel() and (items.dtype == torch.bool or items.is_floating_point()):
        raise TypeError(f"items are whole numbers, not {items.dtype}; convert them by .long()")
    items, known = torch.atleast_1d(items.long()), getattr(model, "num_items", math.inf)
    outside = items[(items < 0) | (items > known)]
    if len(outside):
        raise ValueError(
            f"there is no item {outside[0]}; the model knows 1..{known}, and 0 is padding: give "
            "items the numbers they have in the data that it was made for"
        )
    late = ((items[..., 1:] == 0) & (items[..., :-1] > 0)).nonzero()
    if len(late):
        last = items[tuple(late[0])].item()
        raise ValueError(
            f"padding (0) follows item {last}{f' in row {late[0, 0]}' if items.dim() > 1 else ''}; "
            "padding stands on the left, so that sequences end in an item"
        )
    return items.to(next(model.parameters()).device)


def last_position(encoded):
    """What ``encode`` gave, (B, L, D), at the last position, (B, D); of several, each."""
    if torch.is_tensor(encoded):
        return encoded[:, -1]
    return tuple(part[:, -1] for part in encoded)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module):
    """Inside, no module drops anything out; then each is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def seeded(seed: int | None):
    """Inside, torch's generator runs from ``seed``; then goes on as before. None: no change."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU's, too
        yield
