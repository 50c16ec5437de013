"""How often one player's answers are preferred to another's, and how often they would be at equal length.

Each match is judged in both orders. What is preferred in both has won; all else, ties and verdicts that change with the
order, is a tie, which is half a win: a judge that looks at the place alone then gives 0.5 to everybody (Zheng et al.
2023, arXiv:2306.05685, section 3.4). Standard errors are over items, summed within clusters (Miller 2024,
arXiv:2411.00640).

**At equal length**: judges prefer longer answers. Dubois et al. (2024, arXiv:2404.04475) fit the probability of a win
as ``expit(a + b tanh(d / sd(d)))``, d being the difference in length (here in words), and take it at d = 0. Left out is
their term for how hard an instruction is, which they fit to a leaderboard of models on the same instructions; a sweep's
cells are few and would each be corrected by what they themselves answered. So where answers are longer on hard items
than on easy ones, what is taken off for length is partly due to these. A weak normal prior of standard deviation `WIDE`
on both keeps them finite where one side wins everything or length foretells every verdict.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from analysis.paired import clustered
from harness.items import Asked

WIDE = 5.0
REACH = 1.96  # standard errors of a 95% interval
STEPS, CLOSE, FARTHEST = 100, 1e-10, 2.0  # Newton steps at most; when to stop; how far one step may go


@dataclass(frozen=True)
class Rate:
    value: float
    stderr: float  # over items
    n: int  # matches


def outcome(verdicts: list[float | None]) -> float | None:
    """Of a match judged in both orders: 1, 0.5 or 0 for `one`; None where one of them could not be read."""
    if None in verdicts:
        return None
    return verdicts[0] if verdicts[0] == verdicts[1] else 0.5


def mean(values: np.ndarray, clusters: np.ndarray) -> Rate:
    """Of m matches what was won [m], and the cluster of each item [m].

    Of nothing but ties the error is as if two more clusters had been won and two lost, as Agresti and Coull (1998) have
    it of proportions: that no match was decided does not mean that none could be.
    """
    middle, independent = float(values.mean()), len(np.unique(clusters))
    if values.min() == values.max() and 0 < middle < 1:
        return Rate(middle, 1 / math.sqrt(independent * (independent + 4)), len(values))
    return Rate(middle, float(np.sqrt(clustered(values, _asked(clusters)))), len(values))


def at_equal_length(values: np.ndarray, longer: np.ndarray, clusters: np.ndarray) -> Rate | None:
    """As `mean`, with by how many words the answer was longer, [m]. The error is the sandwich's of the log-odds, where
    two of them reach on the farther side: as by the delta method if it is small, and never narrower.

    Where all matches ended alike there is nothing that length could explain, and it is their mean. Where one side was
    longer in every match there is no match to tell it from, and it is None; where few were of about equal length, the
    fit rests on the prior, which counts as data in the sandwich, so that the error is as wide as the prior is.
    """
    if longer.min() > 0 or longer.max() < 0:
        return None
    if values.min() == values.max():
        return mean(values, clusters)
    spread = longer.std()
    x = np.stack([np.ones(len(values)), np.tanh(longer / spread) if spread else np.zeros(len(values))], axis=1)
    beta, prior = np.zeros(2), np.eye(2) / WIDE**2
    for _ in range(STEPS):
        p = expit(x @ beta)
        curve = (x * (p * (1 - p))[:, None]).T @ x + prior
        step = np.linalg.solve(curve, x.T @ (values - p) - prior @ beta)
        beta = beta + step.clip(-FARTHEST, FARTHEST)
        if np.abs(step).max() < CLOSE:
            break
    p = expit(x @ beta)
    curve = (x * (p * (1 - p))[:, None]).T @ x + prior
    labels = _asked(clusters).clusters
    slopes = np.stack([np.bincount(labels, part) for part in (x * (values - p)[:, None]).T], axis=1)
    count = len(slopes)
    bread = np.linalg.inv(curve)
    covariance = bread @ (slopes.T @ slopes * count / max(count - 1, 1) + prior) @ bread
    reach = REACH * float(np.sqrt(covariance[0, 0]))
    low, rate, high = (float(expit(beta[0] + part)) for part in (-reach, 0.0, reach))
    return Rate(rate, max(rate - low, high - rate) / REACH, len(values))


def _asked(clusters: np.ndarray) -> Asked:
    """As much of the items as `clustered` looks at."""
    return Asked((), np.unique(clusters, return_inverse=True)[1], (), 0.5)
