"""Whether an adapter has room for the data: where it may have not, a plan says so and names the control.

After LoRA Without Regret (Schulman et al. 2025, thinkingmachines.ai/blog/lora): data hold about one bit a token (their
log-loss in the first epoch), counted once however often it is seen, and weights can keep two bits each (Allen-Zhu & Li
2024, arXiv 2404.05405). Beyond that LoRA falls behind training of all weights. Both are rough, and the first is more
than generalising takes. Preferences and rewards say far less a token, so nothing is said of them.
"""

from harness.cell import Cell
from harness.cost import Estimator
from harness.tuning import Learner

BITS_A_TOKEN, BITS_A_WEIGHT = 1, 2


def warnings(cells: list[Cell], estimator: Estimator) -> list[str]:
    """One line for each curve whose largest size may be too much for its adapter."""
    curves: dict[tuple[str, ...], Cell] = {}
    for cell in sorted(cells, key=lambda c: c.size):
        if isinstance(cell.method, Learner) and cell.method.all_weights and not cell.method.stored_in_full:
            curves[cell.base.name, cell.data.name, cell.method.name, cell.method.variant()] = cell
    controls = {(c.base.name, c.data.name, c.size) for c in cells if c.method.stored_in_full}
    lines = []
    for names, cell in curves.items():
        assert isinstance(cell.method, Learner)
        each, weights = estimator.example_tokens(cell), estimator.trained_parameters(cell)
        data, room = BITS_A_TOKEN * cell.size * each, BITS_A_WEIGHT * weights
        if data <= room or room != room:  # which is not known
            continue
        control = f"{cell.method.all_weights} size={cell.size}" + " base.quantize=null" * bool(cell.base.quantize)
        told = "its control is among these cells" if (*names[:2], cell.size) in controls else f"control: {control}"
        lines.append(
            f"capacity: {' '.join(filter(None, names))}: {cell.size:,} examples hold up to {data:.1e} bits (1 a token, "
            f"prompts counted), the adapter {room:.1e} (2 a weight), enough for {room / each:,.0f} examples; {told}"
        )
    return lines
