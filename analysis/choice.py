"""Which law, if any, a curve supports: by AICc on the size means and by what it says of sizes it was not shown.

    choice = choose(sizes, error, stderr)
    choice.why                       # the conclusion, or what cannot be concluded and why, in a sentence
    choice.supported                 # the Fit to draw and, at most one decade on, to extrapolate with; or None
    choice.rows()                    # every candidate: parameters, AICc, held-out errors, cautions
    choice.splits[0].held            # mask of the sizes that were held out, for a figure; .predicted by law
    dropped(choice.supported)        # drop-one-size sensitivity

**The rule.** The largest sizes are held out twice: those in the top decade, and those in the top two (the last one and
the last two sizes where a split would leave fewer than four). A law is *supported* if

1. fitted to the sizes that remain, it is nearer to those held out than the two references: the *last value* (of the
   largest size shown) and the *log-linear* law (which itself need only beat the last value). Nearer: the root mean
   square of (prediction - measured) / stderr over the held-out sizes of both splits together is smaller. And near:
   in the top decade, as far as it will be trusted, it misses by at most 3 standard errors, where those are known. (Of
   predictions that all fail, the least bad one is no law.)
2. its residuals on all sizes are no larger than the standard errors allow (chi-squared, p >= 0.01), where those are
   known, and no nonlinear parameter lies at a bound of its search (it would be our bound that speaks, not the data);
3. its AICc on all sizes is at least 2 below the constant's, and at most 10 above the best law's.

Of several, the one with the lowest AICc is chosen. If there is none, no law is supported and nothing is extrapolated.

Why so: AICc knows the noise and the number of parameters, but of laws that fit alike inside the sizes it prefers the
smaller, whatever each says outside. Held-out sizes test just that, against what one would do without a law, but they
are few, and a law may pass by luck; it will seldom have residuals within the noise as well. Both splits count together
because the top decade alone holds a size or two, where a law and the last value of a flattening curve differ by less
than the noise: asking for both apart rejects the true law every other time. The constant is the null and is never
supported: that no trend is told from noise is no evidence of saturation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.fit import Fit, Points, fit, obstacle
from analysis.laws import CANDIDATES, Array, Constant, Law, LogLinear
from harness.errors import HarnessError

FEWEST = 5  # sizes: four to fit, one to hold out
TRAINED = 4
TREND, REJECTED = 2.0, 10.0  # differences of AICc: below the constant's; above the best (Burnham & Anderson 2002, 2.6)
NEAR = 3.0  # standard errors
LAST = "last value"


@dataclass(frozen=True)
class Split:
    """Sizes held out. `errors`: of each law and reference, the root mean square of its standardised errors there, NaN
    where the remaining sizes are too few for it; `predicted`: what it says of the held-out sizes."""

    held: np.ndarray
    errors: dict[str, float]
    predicted: dict[str, Array]


@dataclass(frozen=True)
class Choice:
    """What `choose` found. `fits` on all sizes, and `splits`, are empty where nothing could be fitted."""

    fits: tuple[Fit, ...]
    splits: tuple[Split, ...]
    supported: Fit | None
    why: str

    def rows(self) -> list[dict[str, Any]]:
        """A row for each candidate, the lowest AICc first: for a table."""
        best = min((f.aicc for f in self.fits), default=np.nan)
        return [
            {
                "law": f.law.name,
                "formula": f.law.formula,
                "parameters": len(f.values),
                "aicc": f.aicc,
                "above_best": f.aicc - best,
                "held_out": held_out(self.splits, f.law.name),
                "supported": f is self.supported,
                "cautions": "; ".join(f.cautions),
            }
            for f in sorted(self.fits, key=lambda f: f.aicc)
        ]


def choose(
    sizes: Array,
    error: Array,
    stderr: Array | None = None,
    *,
    share: bool = True,
    known: bool = True,
    candidates: tuple[Law, ...] = CANDIDATES,
) -> Choice:
    """The supported law of a curve, if any, by the rule above; never raises on what the data are. Arrays [S]."""
    if why := obstacle(sizes, error, stderr):
        return Choice((), (), None, why)
    order = np.argsort(np.asarray(sizes, float))
    points = Points(sizes, error, stderr, share=share, known=known).where(order)
    if len(order) < FEWEST:
        few = "One size makes" if len(order) == 1 else f"{len(order)} sizes make"
        return Choice((), (), None, f"{few} no curve: at least {FEWEST} are needed, to fit a law and to hold one out.")
    if np.ptp(points.error) == 0:
        return Choice((), (), None, f"The score is the same at all {len(order)} sizes, so there is no curve to fit.")
    laws = [law for law in candidates if share or not law.shares_only]
    laws += [law for law in (Constant(), LogLinear()) if law not in laws]
    fits = tuple(fit(law, points) for law in laws if len(law.linear + law.nonlinear) < len(order))
    splits = tuple(_split(points, train, [f.law for f in fits]) for train in training(points.sizes))
    return Choice(fits, splits, *_judged(fits, splits, points))


def training(sizes: Array) -> list[np.ndarray]:
    """Masks [S] of the sizes (ascending) to fit to, one for each split."""
    masks: list[np.ndarray] = []
    for n in (1, 2):
        mask = sizes <= sizes[-1] / 10**n * (1 + 1e-9)
        if mask.sum() < TRAINED:
            mask = np.arange(len(sizes)) < len(sizes) - n
        if mask.sum() >= TRAINED and not any(np.array_equal(mask, m) for m in masks):
            masks.append(mask)
    return masks


def _split(points: Points, train: np.ndarray, laws: list[Law]) -> Split:
    shown, held = points.where(train), points.where(~train)
    reach = 1.01 * held.sizes.max() / shown.sizes.max()
    predicted = {LAST: np.full(len(held.sizes), shown.error[-1])}
    for law in laws:
        if len(law.linear + law.nonlinear) < len(shown.sizes):
            predicted[law.name] = fit(law, shown).predict(held.sizes, reach=max(reach, 10.0))
    errors = {name: float(np.sqrt(np.mean(((p - held.error) * held.weight) ** 2))) for name, p in predicted.items()}
    return Split(~train, errors | {law.name: np.nan for law in laws if law.name not in errors}, predicted)


def held_out(splits: tuple[Split, ...], name: str) -> float:
    """A law's or reference's root mean square error over the held-out sizes of all splits, in standard errors."""
    squares = [split.held.sum() * split.errors[name] ** 2 for split in splits]
    return float(np.sqrt(sum(squares) / sum(split.held.sum() for split in splits)))


def _judged(fits: tuple[Fit, ...], splits: tuple[Split, ...], points: Points) -> tuple[Fit | None, str]:
    """The supported law or None, and the sentence."""
    best = min(f.aicc for f in fits)
    null = next(f for f in fits if f.law == Constant())
    trend = [f for f in fits if f.aicc <= null.aicc - TREND]
    if not trend:
        return None, "No trend over the sizes is told from noise, which is no evidence that there is none."
    first, unit = min(trend, key=lambda f: f.aicc), " standard errors" if points.known else " in relative terms"
    sound = [f for f in trend if not f.misfit and not _forced(f) and f.aicc <= best + REJECTED]
    winners = [f for f in sound if not _nearer(splits, f.law.name) and _near(splits[0], f)]
    chosen = min(winners, key=lambda f: f.aicc) if winners else first
    name, sizes = chosen.law.name, _listed(points.sizes[np.logical_or.reduce([s.held for s in splits])])
    own = held_out(splits, name)
    if winners:
        others = " and ".join(f"the {_called(r)} {held_out(splits, r):.2g}" for r in _references(name))
        return chosen, (
            f"The {name} law is supported: without having seen {sizes} examples it missed them by {own:.2g}{unit}, "
            f"{others}."
        )
    if first.misfit:
        reason = "but its residuals are larger than the noise"
    elif forced := _forced(first):
        reason = f"but {forced[0]} lies at the bound of its search"
    elif np.isnan(own):
        reason = f"but without {sizes} too few sizes remain to fit it"
    elif not (rivals := _nearer(splits, name)):
        top = _listed(points.sizes[splits[0].held])
        reason = f"but without having seen {top} examples it missed them by {splits[0].errors[name]:.2g}{unit}"
    else:
        rival = rivals[0]
        reason = (
            f"but without having seen {sizes} examples it missed them by {own:.2g}{unit}, the {_called(rival)} by only "
            f"{held_out(splits, rival):.2g}"
        )
    return None, f"No law is supported: the {name} law has the lowest AICc, {reason}."


def _forced(fitted: Fit) -> list[str]:
    """Nonlinear parameters at a bound. A linear one there is a finding: an asymptote of 0, no fall at all."""
    return [name for name in fitted.law.nonlinear if name in fitted.at_bound]


def _references(name: str) -> list[str]:
    return [r for r in (LAST, LogLinear.name) if r != name]


def _nearer(splits: tuple[Split, ...], name: str) -> list[str]:
    """The references that a law does not beat on the held-out sizes, the nearest first; NaN beats none."""
    own = held_out(splits, name)
    return sorted((r for r in _references(name) if not own < held_out(splits, r)), key=lambda r: held_out(splits, r))


def _near(split: Split, fitted: Fit) -> bool:
    """Whether a law said what was measured there, but for a few standard errors."""
    return not fitted.points.known or split.errors[fitted.law.name] <= NEAR


def _called(name: str) -> str:
    return name if name == LAST else f"{name} law"


@dataclass(frozen=True)
class Dropped:
    """A law fitted without one size: that size, the values, and its prediction one decade above the largest size."""

    size: float
    values: dict[str, float]
    beyond: float


def dropped(whole: Fit) -> list[Dropped]:
    """Drop-one-size sensitivity: the same law without each size in turn."""
    points = whole.points
    if len(points.sizes) <= len(whole.values) + 1:
        raise HarnessError(
            f"without one of {len(points.sizes)} sizes the {whole.law.name} law would fit whatever they say"
        )
    far = points.sizes.max() * 10
    rest = [(size, fit(whole.law, points.where(points.sizes != size))) for size in points.sizes]
    return [
        Dropped(float(s), f.values, float(f.predict(far, reach=1.01 * far / f.points.sizes.max())[0])) for s, f in rest
    ]


def influence(whole: Fit) -> str:
    """The size without which the prediction one decade on moves most, in a sentence."""
    here = float(whole.predict(whole.points.sizes.max() * 10)[0])
    most = max(dropped(whole), key=lambda d: abs(d.beyond - here))
    return (
        f"Without the score at {most.size:,.0f} the {whole.law.name} law puts the error at "
        f"{whole.points.sizes.max() * 10:,.0f} examples at {most.beyond:.3g}, with it at {here:.3g}; "
        "no other size moves it more."
    )


def _listed(sizes: Array) -> str:
    texts = [f"{size:,.0f}" for size in sizes]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
