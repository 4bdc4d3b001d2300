"""Worlds: synthetic logs whose rule is known, and so is the best score any model could reach.

Each world isolates one thing that may decide what comes next:

- :func:`markov`: the last item;
- :func:`taste`: the bag of all items, whatever their order;
- :func:`series`: one earlier item, found by what it is and not by where it stands;
- :func:`two_hop`: an earlier item that only another earlier item points at.

A world is a function that draws a log, and an :class:`Oracle` that sees a history and knows
the rule with its tables. The oracle gives every item its true probability to be next, so
ranking by it is the best that can be done, and what it reaches is a sum, not a simulation:
with the probabilities in descending order p_1 >= p_2 >= .., the expected HR@k is
p_1 + .. + p_k and the expected NDCG@k is sum_r p_r / log2(1 + r), and by the rearrangement
inequality no other order has more. ``truth.best`` holds the mean over the users of the log.
(Items of equal probability share their ranks, which leaves both sums as they are.)

Items with a genre are numbered genre by genre: item i is of genre ``(i - 1) // size``, where
``size = num_items // num_genres``. The same arguments give the same log on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .interactions import Interactions, Ragged, Truth

__all__ = ["Oracle", "markov", "series", "taste", "two_hop"]

KS = (1, 5, 10, 20, 100)


class Oracle:
    """The best model of a world: knows its rule and tables, and sees histories alone.

    ``sr.evaluate(inter.truth.oracle, split)`` therefore gives ``inter.truth.best``, up to the
    luck of the draw of the targets.

    Attributes:
        num_items: items are numbered 1..num_items.
    """

    num_items: int

    def predict(self, histories: np.ndarray) -> np.ndarray:
        """Probability of every item to be next.

        Args:
            histories: (n, t) whole histories of one length, t >= 1.

        Returns:
            (n, num_items + 1) rows that sum to 1; column 0, padding, is 0.
        """
        raise NotImplementedError

    def score_histories(self, histories: Ragged) -> np.ndarray:
        """:meth:`predict` for histories of any length, as ``evaluate`` asks for it: padding -inf.

        Raises:
            ValueError: a history is empty.
        """
        if len(histories) and histories.lengths.min() == 0:
            raise ValueError("an oracle needs histories of at least one event, and one is empty")
        scores = np.empty((len(histories), self.num_items + 1))
        for length in np.unique(histories.lengths):
            rows = np.flatnonzero(histories.lengths == length)
            scores[rows] = self.predict(histories.select(rows).values.reshape(-1, length))
        scores[:, 0] = -np.inf
        return scores


class _Genres:
    """Items in genres of one size, numbered genre by genre. Needs num_items and num_genres."""

    num_items: int
    num_genres: int

    @property
    def size(self) -> int:
        """Items per genre."""
        return self.num_items // self.num_genres

    def genre(self, items: np.ndarray) -> np.ndarray:
        """The genre (0..num_genres - 1) of each item."""
        return (items - 1) // self.size

    def sequel(self, items: np.ndarray) -> np.ndarray:
        """The next item of the same genre; after the last one, the first."""
        return self.genre(items) * self.size + items % self.size + 1


# ---------------------------------------------------------------------------- markov


@dataclass(frozen=True)
class MarkovOracle(Oracle):
    """Knows the successors (num_items + 1, s) of each item, likeliest first; row 0 is padding's."""

    num_items: int
    successors: np.ndarray
    weights: np.ndarray  # (s,) of the successors, sum 1
    noise: float

    def predict(self, histories):
        probabilities = _spread(len(histories), self.num_items, self.noise)
        successors = self.successors[histories[:, -1]]
        probabilities[_rows(successors), successors] += (1 - self.noise) * self.weights
        return probabilities


def markov(
    num_users: int = 2500,
    num_items: int = 200,
    length: int = 32,
    seed: int = 0,
    *,
    num_successors: int = 5,
    decay: float = 0.6,
    noise: float = 0.1,
) -> Interactions:
    """The last item decides: each item has a few successors, the same for everybody.

    Each successor is ``decay`` times as likely as the one before it; with probability ``noise``
    the next item is any item at all. Nothing before the last item helps.

    Args:
        num_users, num_items, length: the size of the log; every user has ``length`` events.
        seed: of the tables and of the log.
        num_successors: successors of each item, drawn at random.
        decay: from 0 (only the first successor) to 1 (all equally likely).
        noise: share of events that follow no rule.

    Returns:
        The log. A source is the event just before, -1 for noise.

    Raises:
        ValueError: an argument makes no sense; the message says which.
    """
    _check_sizes(num_users, num_items, length, num_successors=num_successors)
    _check_shares(noise=noise, decay=decay)
    if num_successors > num_items:
        raise ValueError(f"num_successors={num_successors} must not exceed num_items={num_items}")
    rng = np.random.default_rng(seed)
    successors = np.argsort(rng.random((num_items + 1, num_items)), axis=1)[:, :num_successors] + 1
    weights = decay ** np.arange(num_successors)
    oracle = MarkovOracle(num_items, successors, weights / weights.sum(), noise)

    items = rng.integers(1, num_items + 1, (num_users, length))
    noisy = rng.random((num_users, length)) < noise
    chosen = _choose(rng, oracle.weights, (num_users, length))
    noisy[:, 0] = True
    for t in range(1, length):
        regular = successors[items[:, t - 1], chosen[:, t]]
        items[:, t] = np.where(noisy[:, t], items[:, t], regular)
    sources = np.where(noisy, -1, np.arange(length) - 1)
    rule = (
        f"Each item has {num_successors} successors, each {decay:g} times as likely as the one "
        f"before; the next item is a successor of the last, or any item ({noise:.0%})."
    )
    return _world("markov", items, sources, oracle, rule)


# ---------------------------------------------------------------------------- taste


@dataclass(frozen=True)
class TasteOracle(_Genres, Oracle):
    """Knows the prior of the users' mixtures and the popularity (size,) within a genre.

    A user's mixture is hidden, from every model alike. Under a Dirichlet prior its posterior
    mean is known in closed form: genre g has probability (a + n_g) / (a G + t) after n_g
    events of genre g among t, with concentration a and G genres. Only the counts matter.
    """

    num_items: int
    num_genres: int
    concentration: float
    popularity: np.ndarray

    def predict(self, histories):
        counts = np.zeros((len(histories), self.num_genres))
        genres = self.genre(histories)
        np.add.at(counts, (_rows(genres), genres), 1)
        mixture = counts + self.concentration
        mixture /= mixture.sum(axis=1, keepdims=True)
        return _pad((mixture[:, :, None] * self.popularity).reshape(len(histories), -1))


def taste(
    num_users: int = 2500,
    num_items: int = 200,
    length: int = 32,
    seed: int = 0,
    *,
    num_genres: int = 10,
    concentration: float = 0.3,
) -> Interactions:
    """Taste decides: each user has a fixed mixture of genres, and order means nothing.

    Mixtures are drawn from a Dirichlet distribution. Every event draws a genre from the user's
    mixture, then an item of that genre; the r-th item of a genre is drawn in proportion to 1/r
    (Zipf). All orders of a history are equally likely, so a bag of items loses nothing.

    Args:
        num_users, num_items, length: the size of the log; every user has ``length`` events.
        seed: of the log.
        num_genres: must divide ``num_items``.
        concentration: of the Dirichlet prior; small: each user keeps to few genres.

    Returns:
        The log. No single event decides another, so every source is -1.

    Raises:
        ValueError: an argument makes no sense; the message says which.
    """
    _check_sizes(num_users, num_items, length, num_genres=num_genres)
    if not concentration > 0:
        raise ValueError(f"concentration must be positive, got {concentration}")
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, num_items // num_genres + 1)
    popularity /= popularity.sum()
    oracle = TasteOracle(num_items, num_genres, concentration, popularity)

    mixture = rng.dirichlet(np.full(num_genres, concentration), num_users)
    below = rng.random((num_users, length, 1)) > mixture.cumsum(axis=1)[:, None, :-1]
    items = below.sum(axis=2) * oracle.size + _choose(rng, popularity, (num_users, length)) + 1
    rule = (
        f"Each user has a mixture of {num_genres} genres; every event draws a genre from it, then "
        "an item by its popularity in the genre. Order means nothing."
    )
    return _world("taste", items, np.full(items.shape, -1), oracle, rule)


# ---------------------------------------------------------------------------- series


@dataclass(frozen=True)
class SeriesOracle(_Genres, Oracle):
    """Knows the genre that each item leads to, ``leads_to`` (num_items + 1,)."""

    num_items: int
    num_genres: int
    leads_to: np.ndarray
    noise: float

    def predict(self, histories):
        n, users = len(histories), np.arange(len(histories))
        left = np.zeros((n, self.num_genres), dtype=np.int64)  # the last item seen of each genre
        for items in histories.T:
            left[users, self.genre(items)] = items
        # Within a genre: the sequel where the series was begun, any item where it was not.
        within = np.where(left > 0, 0.0, 1 / self.size)[:, :, None].repeat(self.size, axis=2)
        probabilities = _pad(within.reshape(n, -1))
        begun = np.nonzero(left)
        probabilities[begun[0], self.sequel(left[begun])] = 1
        genres = _spread(n, self.num_genres, self.noise)[:, 1:]
        genres[users, self.leads_to[histories[:, -1]]] += 1 - self.noise
        probabilities[:, 1:] *= genres.repeat(self.size, axis=1)
        return probabilities


def series(
    num_users: int = 2500,
    num_items: int = 200,
    length: int = 32,
    seed: int = 0,
    *,
    num_genres: int = 10,
    noise: float = 0.1,
) -> Interactions:
    """An earlier item decides: the user goes on where he left the series.

    Each genre is a series of episodes (after the last comes the first). Every item leads to a
    genre, the same for everybody: the next event is of the genre that the last item leads to,
    or with probability ``noise`` of any genre. In that genre it is the episode after the one
    this user saw last, or any episode if he saw none. So the last item says what to look for,
    and the user's last item of that genre says what comes next.

    Args:
        num_users, num_items, length: the size of the log; every user has ``length`` events.
        seed: of the tables and of the log.
        num_genres: must divide ``num_items``.
        noise: share of events whose genre follows no rule.

    Returns:
        The log. A source is the user's previous event of the same genre; -1 where there is
        none, and where noise chose the genre (nobody could have known where to look).

    Raises:
        ValueError: an argument makes no sense; the message says which.
    """
    _check_sizes(num_users, num_items, length, num_genres=num_genres)
    _check_shares(noise=noise)
    rng = np.random.default_rng(seed)
    oracle = SeriesOracle(num_items, num_genres, _signposts(rng, num_items, num_genres), noise)

    users, size = np.arange(num_users), oracle.size
    items, sources = np.empty((2, num_users, length), dtype=np.int64)
    ahead = rng.integers(1, size + 1, (num_users, num_genres)) + np.arange(num_genres) * size
    seen = np.full((num_users, num_genres), -1)  # position of the last event of each genre
    genres = rng.integers(0, num_genres, (num_users, length))
    noisy = rng.random((num_users, length)) < noise
    noisy[:, 0] = True
    for t in range(length):
        regular = oracle.leads_to[items[:, t - 1]] if t else genres[:, 0]
        genre = np.where(noisy[:, t], genres[:, t], regular)
        items[:, t] = ahead[users, genre]
        sources[:, t] = np.where(noisy[:, t], -1, seen[users, genre])
        ahead[users, genre] = oracle.sequel(items[:, t])
        seen[users, genre] = t
    rule = (
        f"Each of {num_genres} genres is a series. The last item leads to a genre, or chance does "
        f"({noise:.0%}); there the user goes on where he left."
    )
    return _world("series", items, sources, oracle, rule)


# ---------------------------------------------------------------------------- two_hop


@dataclass(frozen=True)
class TwoHopOracle(_Genres, Oracle):
    """Knows the genre that each item leads to, and how often one hop is enough."""

    num_items: int
    num_genres: int
    leads_to: np.ndarray  # (num_items + 1,)
    direct: float
    noise: float

    def point_back(self, items: np.ndarray, t: int) -> np.ndarray:
        """Where each user's event ``t`` points: (n,) positions.

        To the latest event before it of the genre that its item leads to, or to itself where
        there is none. ``items`` (n, >= t + 1).
        """
        match = self.genre(items[:, :t]) == self.leads_to[items[:, t], None]
        back = np.hstack([match[:, ::-1], np.ones((len(items), 1), dtype=bool)]).argmax(axis=1) + 1
        return np.where(back > t, t, t - back)

    def hops(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the last event points, and where that one points: two (n,) of positions."""
        pointers = np.stack([self.point_back(items, t) for t in range(items.shape[1])], axis=1)
        first = pointers[:, -1]
        return first, pointers[np.arange(len(items)), first]

    def predict(self, histories):
        n, users = len(histories), np.arange(len(histories))
        if histories.shape[1] < self.num_genres:  # still at the beginning
            fresh = np.ones((n, self.num_genres))
            genres = self.genre(histories)
            fresh[_rows(genres), genres] = 0
            fresh /= self.size * fresh.sum(axis=1, keepdims=True)
            return _pad(fresh.repeat(self.size, axis=1))
        probabilities = _spread(n, self.num_items, self.noise)
        for hop, share in zip(self.hops(histories), (self.direct, 1 - self.direct), strict=True):
            probabilities[users, self.sequel(histories[users, hop])] += (1 - self.noise) * share
        return probabilities


def two_hop(
    num_users: int = 2500,
    num_items: int = 200,
    length: int = 40,
    seed: int = 0,
    *,
    num_genres: int = 20,
    direct: float = 0.3,
    noise: float = 0.1,
) -> Interactions:
    """An earlier item decides, and only another earlier item says which.

    Each genre is a series, and every item leads to a genre, the same for everybody. So every
    event *points back*: to the user's latest event before it of the genre that its item leads
    to (to itself if there is none). The next item is the sequel of the event found by following
    the pointers twice, last event -> j -> k: the sequel of k. With probability ``direct`` one
    hop is enough and it is the sequel of j; with probability ``noise`` it is any item. A user
    begins with one item of each genre, in random order.

    Nothing about k shows in the last item, so one look at the history cannot find it. Two
    layers can: in the first, j reads k; in the second, the last event reads j. So can weights
    composed with weights, for the weights of j point at k, which is why j's pointer goes back
    from j and not from the end. The direct events reward finding j by itself; without them a
    small model is not rewarded until it has both steps, and learns neither.

    Args:
        num_users, num_items, length: the size of the log; every user has ``length`` events.
        seed: of the tables and of the log.
        num_genres: must divide ``num_items``, and be less than ``length``.
        direct: share of the events of the rule that need one hop only.
        noise: share of events that follow no rule.

    Returns:
        The log. A source is j or k, whichever was continued; -1 for noise and for the beginning.

    Raises:
        ValueError: an argument makes no sense; the message says which.
    """
    _check_sizes(num_users, num_items, length, num_genres=num_genres)
    _check_shares(direct=direct, noise=noise)
    if length <= num_genres:
        raise ValueError(
            f"length={length} must exceed num_genres={num_genres}: users begin with one item of "
            "each genre, and the rule starts after that"
        )
    rng = np.random.default_rng(seed)
    signposts = _signposts(rng, num_items, num_genres)
    oracle = TwoHopOracle(num_items, num_genres, signposts, direct, noise)

    users, start = np.arange(num_users), num_genres
    items = rng.integers(1, num_items + 1, (num_users, length))
    order = np.argsort(rng.random((num_users, num_genres)), axis=1)
    items[:, :start] = order * oracle.size + items[:, :start] % oracle.size + 1
    noisy = rng.random((num_users, length)) < noise
    once = rng.random((num_users, length)) < direct
    sources, pointers = np.full((2, num_users, length), -1)
    for t in range(length):
        if t >= start:
            first = pointers[:, t - 1]
            source = np.where(once[:, t], first, pointers[users, first])
            regular = oracle.sequel(items[users, source])
            items[:, t] = np.where(noisy[:, t], items[:, t], regular)
            sources[:, t] = np.where(noisy[:, t], -1, source)
        pointers[:, t] = oracle.point_back(items, t)
    rule = (
        f"Every event points back, to the latest event before it of the genre (one of "
        f"{num_genres}) that its item leads to. The next item is the sequel of what the last "
        f"event points to ({direct:.0%}), else of what that one points to; or any ({noise:.0%})."
    )
    return _world("two_hop", items, sources, oracle, rule)


# ---------------------------------------------------------------------------- shared


def _world(
    name: str, items: np.ndarray, sources: np.ndarray, oracle: Oracle, rule: str
) -> Interactions:
    """The log of ``items`` and ``sources``, both (users, length)."""
    num_users, length = items.shape
    truth = Truth(rule, _best(oracle, items[:, :-1]), sources.ravel(), oracle)
    sequences = Ragged.from_lengths(items.ravel(), np.full(num_users, length))
    return Interactions(sequences, oracle.num_items, name=name, truth=truth)


def _best(oracle: Oracle, histories: np.ndarray) -> Mapping[str, float]:
    """What the oracle reaches in expectation; see the head of this module."""
    hit = np.zeros(oracle.num_items)  # hit[r - 1]: how likely the target has rank r
    for some in np.array_split(histories, -(-len(histories) // 4096)):
        hit += -np.sort(-oracle.predict(some)[:, 1:], axis=1).sum(axis=0) / len(histories)
    ranks = np.arange(1, oracle.num_items + 1)
    hits = {f"HR@{k}": float(hit[:k].sum()) for k in KS}
    gains = {f"NDCG@{k}": float((hit / np.log2(1 + ranks))[:k].sum()) for k in KS}
    return {**hits, **gains, "MRR": float((hit / ranks).sum())}


def _signposts(rng: np.random.Generator, num_items: int, num_genres: int) -> np.ndarray:
    """The genre each item leads to, (num_items + 1,); the items of a genre lead to all alike."""
    every = np.resize(np.arange(num_genres), num_items // num_genres)
    table = rng.permuted(np.tile(every, (num_genres, 1)), axis=1)
    return np.concatenate([[0], table.ravel()])


def _choose(rng: np.random.Generator, weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Indices 0..len(weights) - 1, drawn with probability ``weights``."""
    return np.searchsorted(weights.cumsum()[:-1], rng.random(shape), side="right")


def _spread(n: int, size: int, total: float) -> np.ndarray:
    """(n, size + 1) rows that share ``total`` equally; column 0, padding, has nothing."""
    return _pad(np.full((n, size), total / size))


def _pad(probabilities: np.ndarray) -> np.ndarray:
    return np.pad(probabilities, ((0, 0), (1, 0)))


def _rows(array: np.ndarray) -> np.ndarray:
    """(n, 1) row numbers, to index with beside ``array`` (n, m)."""
    return np.arange(len(array))[:, None]


def _check_sizes(num_users: int, num_items: int, length: int, **more: int) -> None:
    sizes = dict(num_users=num_users, num_items=num_items, length=length, **more)
    for what, size in sizes.items():
        if not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{what} must be a whole number of at least 1, got {size!r}")
    if length < 2:
        raise ValueError(f"length={length} leaves nothing to predict from; it must be at least 2")
    if num_items % more.get("num_genres", 1):
        raise ValueError(
            f"num_genres={more['num_genres']} must divide num_items={num_items}: "
            "genres are of one size"
        )


def _check_shares(**shares: float) -> None:
    for what, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{what} must lie between 0 and 1, got {share}")
