"""Change one thing in a model and put it back: the difference is what that thing did."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..models.weighting import WEIGHTINGS, Weighting, describe_weighting, make_weighting

__all__ = [
    "RemoveDistance",
    "RemovePosition",
    "ScaleResidual",
    "SwapPositions",
    "intervene",
]

Edit = Callable[[Tensor, Tensor], Tensor]


@contextlib.contextmanager
def intervene(
    model,
    change: str | dict[str, Any] | Weighting | Edit | list | ScaleResidual | SwapPositions,
    layers: int | list[int] | None = None,
    heads: int | list[int] | None = None,
) -> Iterator[nn.Module]:
    """Inside the ``with``, the model works with ``change``; afterwards it is as it was.

    ::

        with sr.intervene(model, "uniform", layers=[1]):
            sr.evaluate(model, split)

    It holds in training and evaluation, under :func:`capture` and on any device. Interventions
    nest: an inner one acts on what the outer ones made. What is put back is the object that was
    there, with what training inside the ``with`` made of its parameters.

    Args:
        change: how the weights are made instead (the name of a weighting without parameters,
            or an object, built or not); or a function ``edit(weights, allowed) -> weights``, both
            (B, H, L, L), such as :class:`RemovePosition` and :class:`RemoveDistance`; or a list
            of these, one for each of ``layers``, in their order; or :class:`ScaleResidual`,
            :class:`SwapPositions`.
        layers: numbers of blocks, from 0, or from -1 backwards, each once; all by default.
        heads: numbers of heads; all by default. The others go on as before.

    Raises:
        ValueError: a name of a weighting with parameters, which would be untrained; an object
            built on another device; a layer or head that does not exist, or is named twice;
            heads of something that has none; a list of another length.
        TypeError: ``change`` is none of the above.
    """
    layers = _chosen(layers, len(model.blocks), "layer")
    heads = None if heads is None else _chosen(heads, model.blocks[0].attention.num_heads, "head")
    with contextlib.ExitStack() as undo:
        if isinstance(change, ScaleResidual | SwapPositions):
            if heads is not None:
                raise ValueError(f"{change} concerns no head; leave heads= out")
            change.enter(model, layers, undo)
        else:
            changes = change if isinstance(change, list) else [change] * len(layers)
            if len(changes) != len(layers):
                raise ValueError(f"{len(changes)} changes for {len(layers)} layers; give one each")
            # Building may draw numbers; the model's surroundings should not notice.
            with torch.random.fork_rng(devices=[]):
                made = [_make(model, *each) for each in zip(changes, layers, strict=True)]
            for layer, new in zip(layers, made, strict=True):
                attention = model.blocks[layer].attention
                undo.callback(setattr, attention, "weighting", attention.weighting)
                attention.weighting = _Intervened(attention.weighting, new, heads)
        yield model


class _Intervened(Weighting):
    """A changed weighting, and the one it stands in for.

    Both are submodules, so that moving or switching the model reaches the one that waits.
    """

    name = "intervened"

    def __init__(self, original: Weighting, change: Weighting | Edit, heads: list[int] | None):
        super().__init__()
        self.original, self.change, self.heads = original, change, heads
        self.train(original.training)

    @property
    def replaces(self) -> bool:
        """Whether the original has no say at all."""
        return self.heads is None and isinstance(self.change, Weighting)

    @property
    def uses_scores(self) -> bool:
        changed = isinstance(self.change, Weighting) and self.change.uses_scores
        return changed or (not self.replaces and self.original.uses_scores)

    def describe(self) -> list:
        """The change and its heads, as plain data."""
        if isinstance(self.change, Weighting):
            return [describe_weighting(self.change), self.heads]
        return [_describe_edit(self.change), self.heads]

    def forward(self, scores, allowed):
        if self.replaces:
            return self.change(scores, allowed)
        before = self.original(scores, allowed)
        if isinstance(self.change, Weighting):
            after = self.change(scores, allowed)
        else:
            after = self.change(before, allowed)
        if self.heads is None:
            return after
        weights = before.clone()
        weights[:, self.heads] = after[:, self.heads].to(weights.dtype)
        return weights


def _describe_edit(edit: Edit) -> str:
    """Its name and a checksum of what it does: all lambdas have one name.

    Not its repr, which tells where it lies in memory. Of what it closes over, plain values count.
    """
    if (code := getattr(edit, "__code__", None)) is None:
        return repr(edit)
    cells = [cell.cell_contents for cell in edit.__closure__ or ()]
    values = [*code.co_consts, *cells, *(edit.__defaults__ or ())]
    plain = [value for value in values if isinstance(value, int | float | str | None)]
    what = repr((code.co_code, code.co_names, plain))
    return f"{edit.__qualname__} {zlib.crc32(what.encode()):08x}"


@dataclass(frozen=True)
class RemovePosition:
    """Nobody looks at these positions; what is left of each row is scaled to its former sum.

    A row that saw nothing else becomes zero.

    Args:
        positions: from the end, -1 the most recent item.
    """

    positions: tuple[int, ...]

    def __init__(self, *positions: int):
        object.__setattr__(self, "positions", _from_the_end(positions))

    def __call__(self, weights: Tensor, allowed: Tensor) -> Tensor:
        removed = torch.zeros(weights.shape[-1], dtype=torch.bool, device=weights.device)
        removed[[p for p in self.positions if -p <= weights.shape[-1]]] = True
        return _without(weights, removed)


@dataclass(frozen=True)
class RemoveDistance:
    """Nobody looks back by these many steps; what is left of each row is scaled to its former sum.

    A row that saw nothing else becomes zero.

    Args:
        distances: i - j; 0 is the position itself.
    """

    distances: tuple[int, ...]

    def __init__(self, *distances: int):
        if not distances or min(distances) < 0:
            raise ValueError(f"distances count steps back, 0 or more; got {distances}")
        object.__setattr__(self, "distances", distances)

    def __call__(self, weights: Tensor, allowed: Tensor) -> Tensor:
        place = torch.arange(weights.shape[-1], device=weights.device)
        steps = torch.tensor(self.distances, device=weights.device)
        return _without(weights, torch.isin(place[:, None] - place, steps))


@dataclass(frozen=True)
class ScaleResidual:
    """The residual of the attention is multiplied by ``scale``: 0 leaves attention alone.

    Of STOSA, that of the means; their covariance's stays.
    """

    scale: float

    def enter(self, model, layers: list[int], undo: contextlib.ExitStack) -> None:
        for block in (model.blocks[layer] for layer in layers):
            if not getattr(block, "mean_attention", True):
                raise ValueError(f"{self} concerns the means, and these have no attention here")
            undo.callback(setattr, block, "residual_scale", block.residual_scale)
            block.residual_scale *= self.scale


@dataclass(frozen=True)
class SwapPositions:
    """The model reads its sequences with the items at two positions exchanged.

    Sequences too short to have both are read as they are.

    Args:
        a, b: from the end, -1 the most recent item.
    """

    a: int
    b: int

    def __post_init__(self):
        _from_the_end((self.a, self.b))

    def __call__(self, items: Tensor) -> Tensor:
        """items (B, L) -> the same, exchanged."""
        length = items.shape[1]
        if max(-self.a, -self.b) > length:
            return items
        order = torch.arange(length, device=items.device)
        order[[self.a, self.b]] = order[[self.b, self.a]]
        both = (items[:, [self.a, self.b]] > 0).all(1, keepdim=True)
        return torch.where(both, items[:, order], items)

    def enter(self, model, layers: list[int], undo: contextlib.ExitStack) -> None:
        if len(layers) != len(model.blocks):
            raise ValueError(f"{self} changes what the model reads, not a layer; leave layers= out")
        encode = model.encode
        if "encode" in vars(model):  # exchanged already, by an intervention around this one
            undo.callback(setattr, model, "encode", encode)
        else:
            undo.callback(delattr, model, "encode")
        model.encode = _Exchanged(encode, self)


class _Exchanged:
    """A model's ``encode`` of items at exchanged positions."""

    def __init__(self, encode: Callable, change: SwapPositions):
        self.encode, self.change = encode, change

    def __call__(self, items: Tensor) -> Any:
        return self.encode(self.change(items))

    def __repr__(self) -> str:
        nested = isinstance(self.encode, _Exchanged)
        return f"{self.change}, {self.encode!r}" if nested else f"{self.change}"


def _make(model, change, layer: int) -> Weighting | Edit:
    """The weighting, or the function on weights, that ``change`` means in this layer."""
    num_heads = model.blocks[layer].attention.num_heads
    if isinstance(change, str | dict):
        new = make_weighting(change).build(layer, num_heads, model.max_len)
        if [*new.parameters()]:
            free = (
                name
                for name, kind in WEIGHTINGS.items()
                if not [*kind().build(0, 1, 1).parameters()]
            )
            raise ValueError(
                f"the weighting {change!r} has parameters, which would be untrained here: pass an "
                "object, such as another model's blocks[0].attention.weighting. Without "
                f"parameters are {', '.join(free)}"
            )
    elif isinstance(change, Weighting):
        if [*change.parameters(), *change.buffers()]:
            new = change  # built, and perhaps trained: used itself, in every layer
        else:
            new = make_weighting(change).build(layer, num_heads, model.max_len)
    elif callable(change):
        return change
    else:
        raise TypeError(f"cannot intervene with {change!r}: it is no weighting and no function")
    if new.gaussian and not model.gaussian:
        raise ValueError(f"{new.name!r} is made for Gaussians; {type(model).__name__} has none")
    if new is change:
        home = next(model.parameters()).device
        if away := {t.device for t in (*new.parameters(), *new.buffers())} - {home}:
            raise ValueError(
                f"the weighting {new.name!r} is on {away.pop()} and the model on {home}; move it: "
                f"weighting.to({str(home)!r})"
            )
        return new
    return new.to(next(model.parameters()))


def _chosen(which: int | list[int] | None, count: int, what: str) -> list[int]:
    if which is None:
        return list(range(count))
    which = [which] if isinstance(which, Integral) else list(which)
    if not which:
        raise ValueError(f"no {what} is named, so nothing would change; leave {what}s= out for all")
    if outside := [n for n in which if not -count <= n < count]:
        raise ValueError(f"there is no {what} {outside[0]}; the model has {count}, from 0")
    chosen = [int(n) % count for n in which]
    if len({*chosen}) < len(chosen):
        raise ValueError(f"a {what} is named twice in {which}")
    return chosen


def _from_the_end(positions: tuple[int, ...]) -> tuple[int, ...]:
    if not positions or max(positions) >= 0:
        raise ValueError(f"positions count from the end, -1 the most recent; got {positions}")
    return positions


def _without(weights: Tensor, removed: Tensor) -> Tensor:
    """Zero where ``removed``, each row scaled to its former sum; zero if nothing is left."""
    kept = weights.masked_fill(removed, 0.0)
    left = kept.sum(-1, keepdim=True)
    scale = weights.sum(-1, keepdim=True) / left.masked_fill(left == 0, 1.0)
    return kept * scale
