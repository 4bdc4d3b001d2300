"""What happened during training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

__all__ = ["History"]


@dataclass
class History:
    """One entry an epoch: ``epoch``, ``loss``, ``seconds``, and the validation metrics.

    Besides, of the lengths of the gradient in the epoch's steps (all parameters as one vector,
    before any clipping) the median, ``gradient``, and the largest, ``longest gradient``.

    Attributes:
        epochs: the entries, in order; epochs count from 1.
        monitor: the validation metric that chose the best epoch.
        stopped: why training ended: "epochs" or "patience".
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    monitor: str = "NDCG@10"
    stopped: str = "epochs"

    @property
    def best(self) -> dict[str, float]:
        """The entry of the best epoch: the highest monitored metric, the earliest of equals.

        Where nothing is validated, it is the last epoch.

        Raises:
            ValueError: no epoch has ended.
        """
        if not self.epochs:
            raise ValueError("no epoch has ended yet")
        scored = [entry for entry in self.epochs if self.monitor in entry] or [self.epochs[-1]]
        return max(scored, key=lambda entry: (entry.get(self.monitor, 0.0), -entry["epoch"]))

    @property
    def best_epoch(self) -> int:
        return int(self.best["epoch"])

    @property
    def seconds(self) -> float:
        """Training time in all, validation included."""
        return sum(entry["seconds"] for entry in self.epochs)

    def column(self, name: str) -> list[float]:
        """One quantity over the epochs (NaN where an epoch does not have it)."""
        return [entry.get(name, float("nan")) for entry in self.epochs]

    def to_dict(self) -> dict:
        """Plain data, for records and checkpoints; ``History(**data)`` makes it again."""
        return asdict(self)

    def plot(self, ax=None):
        """Loss and the monitored metric over the epochs, the best epoch marked."""
        from ..plotting import learning_curve

        return learning_curve(self, ax=ax)

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epoch yet)"
        if self.monitor not in self.epochs[-1]:
            return f"History({len(self)} epochs, loss {self.epochs[-1]['loss']:.4f})"
        return (
            f"History({len(self)} epochs in {self.seconds:.0f} s, stopped by {self.stopped}; "
            f"best {self.monitor} {self.best[self.monitor]:.4f} at epoch {self.best_epoch})"
        )
