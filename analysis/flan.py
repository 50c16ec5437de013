"""The fitter on losses that others measured: `python -m analysis.flan flan.csv` prints the README's table.

The file is `benchmark/flan.csv` of github.com/linhaowei1/Fine-tuning-Scaling-Law, to arXiv:2402.02314: the test losses
of 30 models fine-tuned on 200 to 1,638,400 examples of FLAN. Laws are fitted to the sizes up to 1/8, 1/16 and 1/64 of
the largest, with the same relative noise at all sizes, and predict the others. The last column is of fits to all sizes,
as in the authors' results/rmsd.csv, whose medians are 0.0062 (rectified) and 0.034 (power, with a parameter more).
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.choice import LAST, choose
from analysis.fit import Points, fit
from analysis.laws import Array, LogLinear, Power, Rectified
from harness.errors import HarnessError

PARTS = (8, 16, 64)
LAWS = (LogLinear(), Power(), Rectified())
CHOSEN = "as chosen"  # the supported law, or the last value where none is


def losses(path: Path) -> tuple[Array, Array]:
    """Sizes [S], ascending, and losses [models, S], without size 0."""
    if not path.is_file():
        raise HarnessError(f"{path} is no file; download benchmark/flan.csv from linhaowei1/Fine-tuning-Scaling-Law")
    table = pd.read_csv(path)
    columns = sorted((c for c in table.columns if c.isdigit() and int(c) > 0), key=int)
    if not columns:
        raise HarnessError(f"{path} has no columns named by numbers of examples, as flan.csv has")
    return np.array(columns, float), table[columns].to_numpy(float)


def misses(sizes: Array, loss: Array, part: int) -> dict[str, Array]:
    """|log predicted - log measured| [models, held-out sizes] of each way to predict, fitted up to 1/part."""
    shown = sizes <= sizes[-1] / part
    predicted: dict[str, list[Array]] = {name: [] for name in (LAST, *(law.name for law in LAWS), CHOSEN)}
    for row in loss:
        points = Points(sizes[shown], row[shown], row[shown], share=False, known=False)
        last = np.full((~shown).sum(), row[shown][-1])
        for law in LAWS:
            predicted[law.name].append(fit(law, points).predict(sizes[~shown], reach=part))
        supported = choose(sizes[shown], row[shown], row[shown], share=False, known=False).supported
        predicted[CHOSEN].append(supported.predict(sizes[~shown], reach=part) if supported else last)
        predicted[LAST].append(last)
    truth = np.log(loss[:, ~shown])  # a line may say that a loss is below 0: that counts as one of 1e-3
    return {name: np.abs(np.log(np.maximum(values, 1e-3)) - truth) for name, values in predicted.items()}


def residuals(sizes: Array, loss: Array) -> dict[str, Array]:
    """Root mean square of log fitted - log measured [models], of each law fitted to all sizes."""
    found = {}
    for law in LAWS:
        fits = [fit(law, Points(sizes, row, row, share=False, known=False)).predict(sizes) for row in loss]
        found[law.name] = np.sqrt(np.mean((np.log(fits) - np.log(loss)) ** 2, axis=1))
    return found


def table(sizes: Array, loss: Array) -> str:
    """Markdown: medians over models and held-out sizes of each part, at the largest size, and of fits to all."""
    found, whole = {part: misses(sizes, loss, part) for part in PARTS}, residuals(sizes, loss)
    head = " | ".join(f"up to 1/{part} | at the largest" for part in PARTS)
    lines = [f"| predicted by | {head} | fit to all |", "|---|" + "---:|" * (2 * len(PARTS) + 1)]
    for name in found[PARTS[0]]:
        numbers = [f"{np.median(e):.3f}" for part in PARTS for e in (found[part][name], found[part][name][:, -1])]
        numbers.append(f"{np.median(whole[name]):.4f}" if name in whole else "")
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m analysis.flan PATH/TO/flan.csv", file=sys.stderr)
        return 2
    try:
        print(table(*losses(Path(arguments[0]))))
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
