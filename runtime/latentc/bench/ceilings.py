"""What this machine could do at best, measured through the same backend in the same run.

matrix rate   one large matrix product, 2 n³ operations
copy rate     y = -x on an array larger than any cache: bytes read and bytes written

A step cannot be faster than its operations at the one, nor than its bytes at the other (the roofline of Williams,
Waterman and Patterson, CACM 2009). The best of several runs is taken: a ceiling is no average.
"""

import msgspec
import numpy as np

from latentc.backends.protocol import Backend, Engine
from latentc.bench.onnx_writer import one_operator

_RUNS = 7
_SIDE = {"host": 1024, "device": 4096}  # of the matrices
_COPIED_BYTES = {"host": 1 << 27, "device": 1 << 28}
_DTYPES: dict[str, type[np.generic]] = {"float32": np.float32, "float16": np.float16}


class Ceilings(msgspec.Struct, frozen=True):
    """In operations and bytes a second; `dtype` is that of the matrices."""

    dtype: str
    matrix_side: int
    matrix_flops_per_s: float
    copy_bytes_per_s: float


def measured_ceilings(backend: Backend, on_device: bool, half: bool) -> Ceilings:
    """Both ceilings; `half` measures products in float16, which only a device is fast in."""
    where = "device" if on_device else "host"
    dtype = "float16" if half and on_device else "float32"
    side = _SIDE[where]
    matrices: list[tuple[int, ...]] = [(side, side), (side, side)]
    product = backend.load_graph(one_operator("ceiling_matrix", "MatMul", matrices, (side, side), dtype))
    seconds = _best_s(backend, product, matrices, (side, side), dtype)
    count = _COPIED_BYTES[where] // 4
    negate = backend.load_graph(one_operator("ceiling_copy", "Neg", [(count,)], (count,), "float32"))
    copied_s = _best_s(backend, negate, [(count,)], (count,), "float32")
    return Ceilings(
        dtype=dtype,
        matrix_side=side,
        matrix_flops_per_s=2 * side**3 / seconds,
        copy_bytes_per_s=2 * 4 * count / copied_s,
    )


def _best_s(
    backend: Backend, engine: Engine, inputs: list[tuple[int, ...]], output: tuple[int, ...], dtype: str
) -> float:
    rng = np.random.default_rng(0)
    for index, shape in enumerate(inputs):
        buffer = backend.buffer(shape, _DTYPES[dtype])
        # Random data: a GPU draws less power, and clocks higher, on zeros.
        buffer.write(rng.standard_normal(shape, np.float32).astype(_DTYPES[dtype]))
        engine.bind(f"x{index}", buffer)
    result = backend.buffer(output, _DTYPES[dtype])
    engine.bind("y", result)
    engine.run()  # the first run sets things up
    times = []
    for _ in range(_RUNS):
        begin = backend.now()
        engine.run()
        times.append(backend.now().ms_since(begin) / 1e3)
    return min(times)
