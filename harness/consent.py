"""Evaluations that run code which came with neither lm-eval nor the harness wait for somebody to agree.

HumanEval, MBPP and their like execute what the model writes; some metrics are Python files on the hub. It would all run
with the user's rights, so a task's configuration is looked at before lm-eval imports anything of it.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any

from harness.errors import HarnessError


def refuse_code(
    name: str, spec: Any, index: Mapping[str, Any] | None = None, metrics: Container[str] | None = None
) -> None:
    """Raise HarnessError where scoring `spec`, a task's name or configuration, runs such code.

    `index` holds lm-eval's own entries by name. `metrics`, if given, are those it has: it looks for others on the hub.
    """
    why = _runs_code(spec, index or {})
    if not why and metrics is not None:
        strange = [str(m["metric"]) for m in spec.get("metric_list") or [] if m.get("metric") not in metrics]
        why = f"has metrics ({', '.join(strange)}) that lm-eval lacks and would run from the hub" if strange else ""
    if why:
        raise HarnessError(
            f"evals.{name} {why}, with all your rights and in no sandbox; do so in a container only, and agree by "
            f"evals.{name}.unsafe_code=true"
        )


def _runs_code(spec: Any, index: Mapping[str, Any]) -> str:
    """Why a task, or a member of a group or tag, must not be run unasked; empty if it may."""
    config = spec
    if isinstance(spec, str):
        entry = index.get(spec)
        if entry is None or not entry.cfg:  # a tag, which names tasks, or nothing lm-eval knows
            return _any_runs_code(sorted(entry.tags) if entry else [], index)
        config = entry.cfg
    members = config.get("task")
    return _marked(config) or (_any_runs_code(members, index) if isinstance(members, list) else "")


def _any_runs_code(members: Sequence[Any], index: Mapping[str, Any]) -> str:
    return next((why for why in (_runs_code(member, index) for member in members) if why), "")


def _marked(config: Mapping[str, Any]) -> str:
    if config.get("unsafe_code"):
        return "executes what the model writes"
    if any(isinstance(metric, Mapping) and metric.get("hf_evaluate") for metric in config.get("metric_list") or []):
        return "runs a metric's code from the hub"
    return ""
