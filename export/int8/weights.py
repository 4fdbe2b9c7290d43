"""A weight [K, N] as int8 codes and one float32 scale for each of its N output channels, one tensor at a time.

w[k, n] ≈ scale[n] · code[k, n], symmetric: zero is exact, and there is no zero point. The scale is the least with which

    |code| ≤ 127      and      in each pair of rows (2i, 2i + 1) the codes of one sign sum to at most 128.

The second is for processors without a dot product of bytes (AVX2 without VNNI). There ONNX Runtime multiplies unsigned
activations with these codes by `vpmaddubsw`, which adds two neighbouring products in 16 bits and saturates, in silence:
255 · (c₀ + c₁) must not pass 32767. Codes of ±127 came out wrong by 1.6 % of the result there, codes of ±63 (ONNX
Runtime's `reduce_range`) are exact and twice as coarse; these are exact, and a third coarser (ADR 0020).
"""

import numpy as np
import onnx_ir as ir
import torch

from export.arrays import as_tensor

CODE_MAX = 127
PAIR_MAX = 127  # before rounding, which adds at most a half to each of the two: 128 · 255 < 2^15
_BLOCK_ELEMENTS = 1 << 22  # that are looked at together: a few copies of them are in memory


def quantised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [K, N] -> codes int8 [K, N], scales float32 [N]; a scale is NaN or infinite where its channel is."""
    depth, width = weight.shape
    codes, scales = np.empty(weight.shape, np.int8), np.empty(width, np.float32)
    columns = max(_BLOCK_ELEMENTS // max(depth, 1), 1)
    source, target = as_tensor(weight), torch.from_numpy(codes)
    for start in range(0, width, columns):
        block = source[:, start : start + columns]  # [K, n]
        scale = _scales(block)
        target[:, start : start + columns] = (block / scale).round_().nan_to_num_().to(torch.int8)
        scales[start : start + columns] = scale.numpy()
    return codes, scales


def _scales(block: torch.Tensor) -> torch.Tensor:
    """The scales of some channels: [K, n] -> [n]."""
    if len(block) % 2:
        block = torch.cat([block, block.new_zeros(1, block.shape[1])])
    pairs = block.reshape(len(block) // 2, 2, -1)  # [K/2, 2, n]
    above, below = pairs.clamp(min=0).sum(1).amax(0), pairs.clamp(max=0).sum(1).amin(0)
    # A sum of one sign is at least each of the two: the bound of a single code is in that of the pairs.
    scale = torch.maximum(above, -below) / min(CODE_MAX, PAIR_MAX)
    return torch.where(scale == 0, 1.0, scale)


def int8_tensors(
    name: str, tensor: ir.TensorProtocol, transposed: bool, factors: np.ndarray | None
) -> tuple[ir.LazyTensor, ir.LazyTensor]:
    """Codes and scales of `tensor`, each computed when it is read: the weight is never kept in memory.

    transposed: whether `tensor` is [N, K], as a Gemm may have it.
    factors: float32 [K] by which its rows are multiplied first (smoothing.py).
    """
    rows, columns = tensor.shape.numpy()
    depth, width = (columns, rows) if transposed else (rows, columns)

    def made() -> tuple[np.ndarray, np.ndarray]:
        array = tensor.numpy()
        matrix = array.T if transposed else array
        return quantised(matrix if factors is None else matrix * factors[:, None])

    codes = ir.LazyTensor(
        lambda: ir.Tensor(made()[0], name=f"{name}_int8"),
        dtype=ir.DataType.INT8,
        shape=ir.Shape([depth, width]),
        name=f"{name}_int8",
    )
    scales = ir.LazyTensor(
        lambda: ir.Tensor(made()[1], name=f"{name}_scale"),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape([width]),
        name=f"{name}_scale",
    )
    return codes, scales
