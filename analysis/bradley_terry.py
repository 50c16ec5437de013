"""Strengths of players from matches between some of them: Bradley & Terry (1952, Biometrika 39:324), with intervals.

Player i wins against j with probability ``1 / (1 + exp(s_j - s_i))``. The likelihood is concave and is climbed by
Newton's method, for many resamples at once. A tie is half a win for both. Who wins everything would be infinitely
strong, so each player has `PRIOR` further matches, half won, against one of average strength.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from analysis.sample import DRAWS, Estimate, times_drawn

PRIOR = 1.0
STEPS, CLOSE, FARTHEST = 100, 1e-9, 2.0  # Newton steps at most; when to stop; how far one step may go


@dataclass(frozen=True)
class Ranking:
    """Strengths are log-odds with mean 0; of players that no chain of matches joins they cannot be compared."""

    players: tuple[str, ...]  # [K], the strongest first
    strengths: tuple[Estimate, ...]  # [K]
    joined: bool


def strengths(wins: np.ndarray) -> np.ndarray:
    """``wins[..., i, j]``: how often i won against j. Returns the most likely strengths, [..., K] with mean 0."""
    played = wins + np.swapaxes(wins, -1, -2)
    found = np.zeros(wins.shape[:-1])
    eye = np.eye(wins.shape[-1])
    for _ in range(STEPS):
        expected = expit(found[..., :, None] - found[..., None, :])
        own = expit(found)
        slope = (wins - played * expected).sum(-1) + PRIOR * (0.5 - own)
        bend = played * expected * (1 - expected)
        curve = (bend.sum(-1) + PRIOR * own * (1 - own))[..., None] * eye - bend
        step = np.linalg.solve(curve, slope[..., None])[..., 0]
        found = found + step.clip(-FARTHEST, FARTHEST)
        if np.abs(step).max(initial=0.0) < CLOSE:
            break
    return found - found.mean(-1, keepdims=True)


def rank(
    one: np.ndarray, other: np.ndarray, won: np.ndarray, clusters: np.ndarray, n: int = DRAWS, seed: int = 0
) -> Ranking:
    """Of m matches the players' names [m], what `one` won (1, 0.5 or 0), and the cluster of the item, [m] numbers.

    Intervals are over items: the clusters are resampled, `n` times, with all their matches.
    """
    players, index = np.unique(np.concatenate([one, other]), return_inverse=True)
    first, second = index[: len(one)], index[len(one) :]
    names, cluster = np.unique(clusters, return_inverse=True)
    wins = np.zeros((len(names), len(players), len(players)))
    np.add.at(wins, (cluster, first, second), won)
    np.add.at(wins, (cluster, second, first), 1 - won)
    values = strengths(wins.sum(axis=0))
    mark = hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()
    times = times_drawn(mark, len(names), n, seed)
    flat = wins.reshape(len(names), -1).astype(np.float32)
    parts = (times[k : k + 128].astype(np.float32) @ flat for k in range(0, n, 128))
    drawn = np.concatenate([strengths(p.reshape(-1, *wins.shape[1:]).astype(float)) for p in parts])
    drawn = values + (drawn - values) * np.sqrt(len(names) / max(len(names) - 1, 1))  # resamples of few vary too little
    order = np.argsort(-values)
    joined = connected_components(wins.sum(axis=0) + wins.sum(axis=0).T, directed=False, return_labels=False) == 1
    estimates = tuple(Estimate.of(values[k], drawn[:, k]) for k in order)
    return Ranking(tuple(str(players[k]) for k in order), estimates, bool(joined))
