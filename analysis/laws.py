"""What may relate error to number of examples: one small class for each law, and none knows how it is fitted.

A law is *linear* in some parameters once the others are known: error(x) = offset(x; t) + sum of c_j * column_j(x; t),
with c the linear and t the nonlinear parameters. `analysis.varpro` uses that; a new law is one more class like these.
"Error" is any quantity that is the better the lower: 1 - score (`analysis.fit.error_of`), or a loss.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]
Range = tuple[float, float]
FREE: Range = (-np.inf, np.inf)
EXPONENT: Range = (0.01, 3.0)  # below, a power cannot be told from a logarithm; above, from a step
THOUSAND = 1000.0  # what LIMA fine-tuned on: intercepts are given there


class Law(Protocol):
    """`linear` and `nonlinear` name the parameters; `logarithmic`: the nonlinear ones are searched by their logarithm.

    `shares_only`: it has a meaning for errors between 0 and 1 only. `inputs`: columns of x that it reads; 1: sizes,
    2: also a number for each point's base (parameters, pretraining tokens ...).
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    paper: ClassVar[str]
    linear: ClassVar[tuple[str, ...]]
    nonlinear: ClassVar[tuple[str, ...]]
    logarithmic: ClassVar[bool]
    shares_only: ClassVar[bool]
    inputs: ClassVar[int]

    def bounds(self, x: Array, error: Array, share: bool) -> list[Range]:
        """(lowest, highest) of each parameter, linear ones first. `share`: the error is a proportion."""
        ...

    def columns(self, x: Array, t: Array) -> tuple[Any, list[Array]]:
        """The offset and the linear parameters' columns, each [..., S], for x [S, inputs] and t [..., nonlinear]."""
        ...


class _Law:
    linear: ClassVar[tuple[str, ...]] = ()
    nonlinear: ClassVar[tuple[str, ...]] = ()
    logarithmic: ClassVar[bool] = True
    shares_only: ClassVar[bool] = False
    inputs: ClassVar[int] = 1


@dataclass(frozen=True)
class Constant(_Law):
    """No trend. The null that every other law must beat; never evidence of saturation."""

    name: ClassVar[str] = "constant"
    formula: ClassVar[str] = "E"
    paper: ClassVar[str] = ""
    linear: ClassVar[tuple[str, ...]] = ("E",)

    def bounds(self, x: Array, error: Array, share: bool) -> list[Range]:
        return [FREE]

    def columns(self, x: Array, t: Array) -> tuple[Any, list[Array]]:
        return 0.0, [np.ones((*t.shape[:-1], len(x)))]


@dataclass(frozen=True)
class LogLinear(_Law):
    """The same gain from every tenfold of the data. One of the two references: it knows neither floor nor ceiling."""

    name: ClassVar[str] = "log-linear"
    formula: ClassVar[str] = "a + b log10(D / 1000)"
    paper: ClassVar[str] = ""
    linear: ClassVar[tuple[str, ...]] = ("a", "b")

    def bounds(self, x: Array, error: Array, share: bool) -> list[Range]:
        return [FREE, FREE]

    def columns(self, x: Array, t: Array) -> tuple[Any, list[Array]]:
        one = np.ones((*t.shape[:-1], len(x)))
        return 0.0, [one, one * np.log10(x[:, 0] / THOUSAND)]


@dataclass(frozen=True)
class LogitLinear(_Law):
    """The same gain in log-odds from every tenfold; error goes to 0 in the end."""

    name: ClassVar[str] = "logit-linear"
    formula: ClassVar[str] = "1 / (1 + exp(-a - b log10(D / 1000)))"
    paper: ClassVar[str] = ""
    nonlinear: ClassVar[tuple[str, ...]] = ("a", "b")
    logarithmic: ClassVar[bool] = False
    shares_only: ClassVar[bool] = True

    def bounds(self, x: Array, error: Array, share: bool) -> list[Range]:
        return [(-20.0, 20.0), (-5.0, 5.0)]

    def columns(self, x: Array, t: Array) -> tuple[Any, list[Array]]:
        return expit(t[..., :1] + t[..., 1:] * np.log10(x[:, 0] / THOUSAND)), []


@dataclass(frozen=True)
class Power(_Law):
    """The pretraining law with its asymptote (Hestness et al. 2017), as it is mostly used in fine-tuning."""

    name: ClassVar[str] = "power"
    formula: ClassVar[str] = "E + B D^-beta"
    paper: ClassVar[str] = "arXiv:1712.00409"
    linear: ClassVar[tuple[str, ...]] = ("E", "B")
    nonlinear: ClassVar[tuple[str, ...]] = ("beta",)

    def bounds(self, x: Array, error: Array, share: bool) -> list[Range]:
        return [_asymptote(error, share), (0.0, np.inf), EXPONENT]

    def columns(self, x: Array, t: Array) -> tuple[Any, list[Array]]:
        power = np.exp(-t * np.log(x[:, 0]))
        return 0.0, [np.ones_like(power), power]


@dataclass(frozen=True)
class ScorePower(_Law):
    """The score is a power of the number of examples: P = a D^(1/b) (Revisiting the SAH, arXiv:2410.03717).

    `a` is a share here, and percent in the paper. P passes 1 in the end, so the law can hold for a range only.
    """

    name: ClassVar[str] = "score power"
    formula: ClassVar[str] = "1 - a D^(1/b)"
    paper: ClassVar[str] = "arXiv:2410.03717"
    linear: ClassVar[tuple[str, ...]] = ("a",)
    nonlinear: ClassVar[tuple[str, ...]] = ("b",)
    shares_only: ClassVar[bool] = True

    def bounds(self, x: Array, error: Array, share: bool) -> list[Range]:
        return [(0.0, np.inf), (1.0, 1000.0)]

    def columns(self, x: Array, t: Array) -> tuple[Any, list[Array]]:
        return 1.0, [-np.exp(np.log(x[:, 0]) / t)]


@dataclass(frozen=True)
class Rectified(_Law):
    """A power law that counts what pretraining taught as data: B / (D_l + D^beta) + E (arXiv:2402.02314).

    Written here with A = B / D_l, what the error is above E before any example, and knee = D_l^(1/beta), the number of
    examples that what is pre-learned is worth: the same law, but in units one can read, and the two are less entangled.
    Below the knee it is flat (the paper's pre-power phase), above it is the plain power law. The paper's page also has
    a power of the whole; its published code has none, and no eleven sizes tell five parameters apart, so it is 1 here.
    """

    name: ClassVar[str] = "rectified"
    formula: ClassVar[str] = "E + A / (1 + (D / knee)^beta)"
    paper: ClassVar[str] = "arXiv:2402.02314"
    linear: ClassVar[tuple[str, ...]] = ("E", "A")
    nonlinear: ClassVar[tuple[str, ...]] = ("beta", "knee")

    def bounds(self, x: Array, error: Array, share: bool) -> list[Range]:
        knee = (x[:, 0].min() / 1000, x[:, 0].max() * 10)  # out there it is a plain power law, or nearly flat
        return [_asymptote(error, share), (0.0, np.inf), EXPONENT, knee]

    def columns(self, x: Array, t: Array) -> tuple[Any, list[Array]]:
        beta, knee = t[..., :1], t[..., 1:]
        power = expit(-beta * (np.log(x[:, 0]) - np.log(knee)))
        return 0.0, [np.ones_like(power), power]

    @staticmethod
    def published(values: dict[str, float]) -> dict[str, float]:
        """The paper's own parameters: B, D_l, beta and E."""
        learned = values["knee"] ** values["beta"]
        return {"B": values["A"] * learned, "D_l": learned, "beta": values["beta"], "E": values["E"]}


@dataclass(frozen=True)
class Joint(_Law):
    """Several bases at once: what a larger base or more data buys multiply (arXiv:2402.17193).

    X is the number the bases differ in (parameters, pretraining tokens, adapter parameters), D the examples.
    """

    name: ClassVar[str] = "joint"
    formula: ClassVar[str] = "E + A X^-alpha D^-beta"
    paper: ClassVar[str] = "arXiv:2402.17193"
    linear: ClassVar[tuple[str, ...]] = ("E", "A")
    nonlinear: ClassVar[tuple[str, ...]] = ("alpha", "beta")
    inputs: ClassVar[int] = 2

    def bounds(self, x: Array, error: Array, share: bool) -> list[Range]:
        return [_asymptote(error, share), (0.0, np.inf), EXPONENT, EXPONENT]

    def columns(self, x: Array, t: Array) -> tuple[Any, list[Array]]:
        power = np.exp(-t[..., :1] * np.log(x[:, 1]) - t[..., 1:] * np.log(x[:, 0]))
        return 0.0, [np.ones_like(power), power]


CANDIDATES: tuple[Law, ...] = (Constant(), LogLinear(), LogitLinear(), ScorePower(), Power(), Rectified())


def _asymptote(error: Array, share: bool) -> Range:
    return 0.0, 1.0 if share else float(error.max())
