"""Loop-invariant code motion over the sampling loop: one traced step becomes prompt, schedule and denoise graphs."""

from export.hoist.classes import InputClass, ValueClass
from export.hoist.cost_model import CostModel
from export.hoist.dump import write_dump
from export.hoist.errors import (
    HoistError,
    NotALoopError,
    UnknownInputError,
    UnsupportedNodeError,
    UnusedInputError,
)
from export.hoist.layout import ROWS, SCHEDULE_ROW, Feed, Layout, PromptTensor, RowSlot, ScheduleInput
from export.hoist.partition import Partition, partition
from export.hoist.report import Report

__all__ = [
    "CostModel",
    "Feed",
    "HoistError",
    "InputClass",
    "Layout",
    "NotALoopError",
    "Partition",
    "PromptTensor",
    "ROWS",
    "Report",
    "RowSlot",
    "SCHEDULE_ROW",
    "ScheduleInput",
    "UnknownInputError",
    "UnsupportedNodeError",
    "UnusedInputError",
    "ValueClass",
    "partition",
    "write_dump",
]
