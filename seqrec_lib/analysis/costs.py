"""What each way of making weights costs: parameters, operations, time, memory."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from ..device import device as pick_device
from ..models.saving import MODELS
from ..models.weighting import WEIGHTINGS
from ..training.losses import ce

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["costs"]


def costs(
    attention: str | dict | Iterable[str | dict] | None = None,
    length: int | Iterable[int] = 50,
    num_items: int | Iterable[int] = 10_000,
    *,
    model: str = "SASRec",
    batch_size: int = 32,
    seconds: float = 0.5,
    device: str = "auto",
    **settings: Any,
) -> pd.DataFrame:
    """What one training step costs: forward, cross-entropy over all items, backward.

    Every combination of the given weightings, lengths and catalogue sizes is built, and steps on
    ``batch_size`` histories of random items without padding; the optimiser's step is left out.

    Args:
        attention: weightings, by name or as ``{"name": .., ..}``; by default all that suit.
        length: maximum lengths n.
        num_items: catalogue sizes.
        model: "SASRec" or "STOSA".
        seconds: time each step for about so long; 0 does not time it.
        device: "auto", "cpu", "cuda", ...
        settings: passed on to the model (``dim=``, ``num_blocks=``, ``num_heads=``, ...).

    Returns:
        A row for each combination, with ``model``, ``attention``, ``length``, ``num_items`` and

        - ``parameters``, and ``attention_parameters``: those of the weightings alone;
        - ``gflop``: 1e9 floating-point operations in the step's matrix products, a
          multiplication and an addition counted as two; nothing else is counted;
        - ``milliseconds``: the median time of a step, in evaluation mode (no dropout); NaN where
          it was not measured;
        - ``peak_mb``: 1e6 bytes of tensors alive at once beyond the parameters, gradients
          included. Counted tensor by tensor, so it is the same every time; what a kernel takes
          for itself while it runs is not in it. The loss holds more scores at a time on a GPU
          (:func:`~seqrec_lib.training.losses.chunked_cross_entropy`): compare on one device.
    """
    import pandas as pd

    if model not in MODELS:
        raise ValueError(f"no model is called {model!r}; there are: {', '.join(MODELS)}")
    kind, where = MODELS[model], pick_device(device)
    if attention is None:
        attention = [n for n, w in WEIGHTINGS.items() if kind.gaussian or not w.gaussian]
    attention = [attention] if isinstance(attention, (str, dict)) else attention
    rows = []
    for spec, n, catalogue in itertools.product(attention, _several(length), _several(num_items)):
        built = kind(catalogue, max_len=n, attention=spec, seed=0, **settings).to(where).eval()
        step = _step(built, batch_size)
        step()  # what is made once, on first use, is no cost of a step
        rows.append({
            "model": model, "attention": spec if isinstance(spec, str) else str(spec),
            "length": n, "num_items": catalogue,
            "parameters": _count(built),
            "attention_parameters": sum(_count(b.attention.weighting) for b in built.blocks),
            "gflop": _operations(step) / 1e9,
            "milliseconds": _time(step, seconds) * 1e3,
            "peak_mb": _peak(step) / 1e6,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _step(model, batch_size: int):
    where = next(model.parameters()).device
    shape = (batch_size, model.max_len)
    generator = torch.Generator().manual_seed(0)
    items, targets = (
        torch.randint(1, model.num_items + 1, shape, generator=generator).to(where)
        for _ in range(2)
    )

    def step() -> None:
        model.zero_grad()
        encoded = model.encode(items)
        flat = (
            encoded.flatten(0, 1)
            if torch.is_tensor(encoded)
            else tuple(part.flatten(0, 1) for part in encoded)
        )
        ce(model, flat, targets.flatten()).backward()

    return step


def _operations(step) -> int:
    # torch counts addmm but not addmm_, which the chunked cross-entropy adds its gradient with.
    def in_place(total, a, b, out_shape=None, **_) -> int:
        return 2 * a[0] * a[1] * b[1]

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})
    with counter:
        step()
    return counter.get_total_flops()


def _time(step, seconds: float) -> float:
    if not seconds:
        return float("nan")
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).median


def _peak(step) -> int:
    with _Alive() as alive:
        step()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Follows the bytes of all storages made inside it, and the most alive at once."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        old = {id(s) for s in _storages((args, kwargs))}
        result = function(*args, **kwargs)
        for storage in _storages(result):
            if id(storage) not in old | self.known:  # a new one, not a view or an argument
                self.known.add(id(storage))
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._freed, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def _storages(tree):
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _several(sizes: int | Iterable[int]) -> Iterable[int]:
    return [sizes] if isinstance(sizes, int) else list(sizes)
