"""What the shapes of a model's weights say: how many there are, which belong to linear layers."""

import math

Shapes = dict[str, tuple[int, ...]]  # by tensor name; (out, in) of a linear layer


def parameters(of: Shapes) -> int:
    """All of them, embeddings included, as Hoffmann et al. 2022 (arXiv 2203.15556) count N in 6ND."""
    return sum(math.prod(shape) for shape in of.values())


def linear(of: Shapes) -> Shapes:
    """Matrices of the linear layers within the blocks, which LoRA adapts by default: neither embeddings nor head."""
    outside = ("emb", "lm_head", "wte", "wpe", "output.weight")
    return {
        name: shape
        for name, shape in of.items()
        if len(shape) == 2 and (not any(part in name for part in outside) or "attn_output" in name)
    }
