"""What a graph is compiled for, and a static check that the target's parser will take it.

findings = check_target(model, "tensorrt-8.6")      # export/targets/check.py; empty: nothing to object to
"""

from export.targets.check import Finding, check_target
from export.targets.names import OPSETS, TARGETS, Target

__all__ = ["OPSETS", "TARGETS", "Finding", "Target", "check_target"]
