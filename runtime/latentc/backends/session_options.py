"""How ONNX Runtime's sessions are set up: threads, memory, and what may be opened.

What each setting costs or saves was measured; the figures are in docs/memory.md and ADR 0023.
"""

import os

import onnxruntime

from latentc.errors import BackendError
from latentc.heap import give_back_large_blocks

_FATAL_ONLY = 4  # ONNX Runtime's log level: its errors reach us as exceptions already
_DIRECT = "session.use_external_initializer_file_buffers_directly"
_DIRECT_SINCE = (1, 31)
_FOLDED_BYTES = 2**20  # constants of this size and less are folded: shape arithmetic, no weights
_SPIN_US = "200"
_SPIN_US_SINCE = (1, 26)  # before, a thread spins for a number of turns: up to half a second


def session_options(threads: int, optimise: bool, mapped: bool = False) -> onnxruntime.SessionOptions:
    """Those of every session; `optimise=False` runs the graph node by node, as it is written.

    `mapped` makes all memory of the session but its activations pages of the weights' file.
    """
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    # A thread that waits for the next node of a step should not be asleep when it comes; one whose session has
    # nothing to do should, since the other sessions want the core.
    if _version() >= _SPIN_US_SINCE:
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(_DIRECT, "1")
    # Both cost memory, and no time was seen to be gained: a block for a planned second run beside what the arena
    # kept of the first, and buffers that wait, unused, for a later value of the same shape.
    options.enable_mem_pattern = False
    options.enable_mem_reuse = False
    if mapped:
        _leave_weights_alone(options, optimise)
    return options


def _leave_weights_alone(options: onnxruntime.SessionOptions, optimise: bool) -> None:
    if _version() < _DIRECT_SINCE:
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} copies weights; --memory low needs 1.31 or newer: "
            'pip install --upgrade "latentc[cpu]"'
        )
    if optimise:  # "all" is this, a new layout for convolutions, and weights in another precision
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(_FOLDED_BYTES))
    # A half-precision weight is converted by a node that depends on nothing. In the default order all of these run
    # first, and hold all of the model in single precision at once; in this order each runs when it is needed.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False  # keeps, for the next run, all that was ever in use
    give_back_large_blocks()


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
