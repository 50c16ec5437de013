"""Answers to open questions, kept for a judge: without one, all that can be said of them is how long they are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from harness.cell import Message, Task
from harness.errors import HarnessError
from harness.probe import Asking, Measured, Probe

NEXT = "\u2603NEXT\u2603"
DROPPED = ("prompts", "tokens", "bypass")


@dataclass
class Written(Probe):
    """Scores ``words``, the mean length of an answer. More is neither better nor worse (LIMA's are longer).

    With `then`, a Jinja template of what the user says next, the model is asked on behind its own answer. The second
    answer is what is kept then, with the ``turns`` before it and the task's target, which is of it; its words are those
    of both.
    """

    for_a_judge: ClassVar[bool] = True
    then: str = ""

    def check(self, name: str, task: Task) -> None:
        if self.then and not (task.chat and isinstance(task.task, Mapping) and "{{" in str(_opening(task))):
            raise HarnessError(
                f"evals.{name}.probe.then is for an inline task in chat whose doc_to_text is a template; leave it out"
            )

    def passes(self) -> float:
        return 3.0 if self.then else 1.0  # the first turn once more, as what the second stands behind

    def measure(self, asking: Asking) -> Measured:
        said = self._second(asking) if self.then else asking.ask(asking.adapted)
        lines = [{k: v for k, v in line.items() if k not in DROPPED} for line in said["samples"]]
        for line in lines:
            spoken = [*line.get("turns", [])[1::2], line["answers"][0][0]]
            line["words"] = float(sum(len(text.split()) for text in spoken))
        about = {name: said[name] for name in ("task_versions", "truncated_prompts", "backend", "tokens_per_pass")}
        return Measured(lines, {"words": True}, lines[0]["filter"], about)

    def _second(self, asking: Asking) -> dict[str, Any]:
        """What `asking.ask` returns, of the second turn. Both questions come back as the target of the first."""
        opening, shown = str(_opening(asking.task)), asking.adapted.demonstrations
        first = asking.ask(asking.adapted, task=_asks(asking.task, opening, opening + NEXT + self.then))
        turns = {_item(line): (*line["target"].split(NEXT), line["answers"][0][0]) for line in first["samples"]}
        before = {then.strip(): (question, answer) for question, then, answer in turns.values()}
        if len(before) < len(turns):
            raise HarnessError(f"items of {asking.name} go on in the same words, so their turns cannot be told apart")

        def earlier(then: str) -> list[Message]:
            question, answer = before[then.strip()]
            opened = shown(question) if callable(shown) else shown
            return [*opened, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]

        adapted = replace(asking.adapted, demonstrations=earlier)
        second = asking.ask(adapted, task=_asks(asking.task, self.then, asking.task.task.get("doc_to_target", "")))
        for line in second["samples"]:
            question, then, answer = turns[_item(line)]
            line["turns"] = [question, answer, then]
        return {**second, "truncated_prompts": first["truncated_prompts"] + second["truncated_prompts"]}


def _item(line: dict[str, Any]) -> tuple[str, int]:
    return line["task"], line["item"]


def _opening(task: Task) -> Any:
    return task.task.get("doc_to_text", "")


def _asks(task: Task, text: str, target: Any) -> Task:
    return replace(task, task={**task.task, "doc_to_text": text, "doc_to_target": target})
