"""The published learning rate of supervised fine-tuning, `method.lr=auto`.

LoRA Without Regret (Schulman et al. 2025, thinkingmachines.ai/blog/lora) swept 14 Llama and Qwen models over Tulu 3 and
fitted LR = base * M * (2000 / width) ^ p, the same p with LoRA and without, independent of the rank; M is 1 for all
weights and 9.8 for LoRA, "10x". The values are the authors' in Tinker's documentation (tinker-cookbook at 0558526,
docs/supervised-learning/sl-hyperparams.mdx; at e1024a4, hyperparam_utils.get_lr), which reports losses within 0.5% of
an exhaustive search over data, sizes, batches and ranks. LoRA in short runs wants about 15x, on what they call
anecdotal evidence below some 100 steps.

Not covered, and refused: families other than these two (the authors' code knows no exponent for them either), and
training that is not supervised fine-tuning. The authors' later code (at 02face3) replaces the formula by the best of a
coarse grid for each model on Tulu 3, batch 128, 780 steps: 3e-4 for Llama-3.1-8B, where the formula gives 2.9e-4, but
1e-3 for Qwen3-8B, where it gives 4.7e-4.
"""

from collections.abc import Sequence

from harness.errors import HarnessError

BASE, WIDTH = 5e-5, 2000
LORA, LORA_SHORT, SHORT = 10, 15, 100  # times that of all weights, also in runs of fewer than so many steps
EXPONENTS = {"llama": 0.781, "qwen": 0.0775}


def published(family: str, width: int, steps: int, *, lora: bool) -> float:
    """The learning rate for a model of this family and width (`hidden_size`), trained for so many steps."""
    times = (LORA_SHORT if steps < SHORT else LORA) if lora else 1
    return float(BASE * times * (WIDTH / width) ** EXPONENTS[family])


def family(names: Sequence[str]) -> str:
    """Whose weights they are, told by name as the authors' code does: not every model built like a Llama is one."""
    found = [known for known in EXPONENTS if any(known in name.lower() for name in names)]
    if len(found) != 1:
        raise HarnessError(
            f"method.lr=auto is published for Llama and Qwen models, and {names[0]!r} is not told to be one of them; "
            "set method.lr to a number or to search"
        )
    return found[0]
