"""What can be said of a data set before any model is trained on it.

A few counts, and the skill of three models that only count.

The question behind it (Chapter 11): do simple statistics tell where a data set will stand
between mixing and reliance?
"""

from __future__ import annotations

import numpy as np

from ..data.splits import Split
from ..evaluation import evaluate
from ..models import ItemKNN, MarkovChain

__all__ = ["gini", "profile"]


def profile(split: Split) -> dict[str, float]:
    """Simple statistics of a data set, in seconds, from the training and validation parts alone.

    Skill is validation NDCG@10 among all items, those already seen left out (a model of the whole
    history would otherwise spend its list on them).

    Returns:
        - ``users``, ``items``, ``interactions`` and ``mean_length``, of the training part;
        - ``gini`` of the items' popularity: 0 where all are alike, near 1 where few have it all;
        - ``markov``: skill of the first-order :class:`MarkovChain`: how far the last item decides;
        - ``knn_bag``, ``knn_last``: skill of :class:`ItemKNN` on the history as a set, and on the
          last item alone;
        - ``bag_gain``: (knn_bag - knn_last) / (knn_bag + knn_last), between -1 (only the last
          item helps) and 1 (only the others do); NaN where both skills are 0.
    """
    train, knn = split.train, ItemKNN().fit(split)

    def skill(model) -> float:
        return evaluate(model, split, part="validation", ks=(10,), filter_seen=True)["NDCG@10"]

    def reading(decay: float) -> float:
        knn.decay = decay
        return skill(knn)

    bag, last = reading(1.0), reading(0.0)
    return {
        "users": train.num_users,
        "items": train.num_items,
        "interactions": train.num_interactions,
        "mean_length": train.num_interactions / train.num_users,
        "gini": gini(train.item_counts[1:]),
        "markov": skill(MarkovChain().fit(split)),
        "knn_bag": bag,
        "knn_last": last,
        "bag_gain": (bag - last) / (bag + last) if bag + last else float("nan"),
    }


def gini(counts: np.ndarray) -> float:
    """The Gini coefficient of ``counts`` (n,), none negative: mean gap of two of them, halved and
    taken as a share of their mean. 0 where all are equal, (n - 1) / n where one has everything.

    Raises:
        ValueError: there is nothing to share.
    """
    ordered = np.sort(np.asarray(counts, dtype=np.float64))
    if not ordered.sum() > 0:
        raise ValueError("a Gini coefficient needs counts of which one is above 0")
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))
