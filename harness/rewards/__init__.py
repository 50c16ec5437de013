"""Verifiable rewards: one small class each, from a completion and its reference to a number between 0 and 1.

A configuration names them under ``method.rewards`` with Hydra's ``_target_``; each is a term of its own, weighted and
logged apart, so that form and content are told apart in training as in evaluation. Nothing that a model wrote or a row
holds is executed.
"""

from harness.rewards.base import Reward
from harness.rewards.constraints import Constraints
from harness.rewards.gym import ReasoningGym
from harness.rewards.match import ExactMatch, RegexMatch
from harness.rewards.mathematics import MathVerify

__all__ = ["Constraints", "ExactMatch", "MathVerify", "ReasoningGym", "RegexMatch", "Reward"]
