"""Answers to open questions, kept for a judge: without one, all that can be said of them is how long they are."""

from dataclasses import dataclass

from harness.probe import Asking, Measured, Probe


@dataclass
class Written(Probe):
    """Scores ``words``, the mean length of an answer. More is neither better nor worse (LIMA's are longer)."""

    def measure(self, asking: Asking) -> Measured:
        said = asking.ask(asking.adapted)
        lines = [{k: v for k, v in line.items() if k not in ("prompts", "bypass")} for line in said["samples"]]
        for line in lines:
            line["words"] = float(len(line["answers"][0][0].split()))
        about = {name: said[name] for name in ("task_versions", "truncated_prompts", "backend", "tokens_per_pass")}
        return Measured(lines, {"words": True}, lines[0]["filter"], about)
