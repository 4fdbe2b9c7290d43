"""What float16 can hold of a weight, and the weight in float16, one tensor at a time.

float16 (IEEE 754 binary16): largest 65504, smallest normal 2^-14 = 6.1e-5, smallest subnormal 2^-24; what is below
2^-25 becomes zero. bfloat16 and float32 weights go far beyond both ends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from export.arrays import as_tensor

HALF_MAX = 65504.0
HALF_SMALLEST_NORMAL = 2.0**-14
HALF_ROUNDS_TO_ZERO = 2.0**-25
# A weight drawn from N(0, 0.02²) has 0.25 % of its elements below 2^-14; twenty times that is worth a word.
SMALL_SHARE = 0.05
SAMPLE = 1 << 20  # elements of a larger weight that are looked at for its small ones


@dataclass(frozen=True)
class WeightFit:
    """How the elements of one weight fit: counts over its `num_elements`, and its largest magnitude."""

    name: str
    num_elements: int
    num_overflow: int  # finite and above 65504: infinite in half
    num_subnormal: int  # kept with fewer bits
    num_zero: int  # non-zero, but zero in half
    peak: float

    @property
    def fits(self) -> bool:
        return self.num_overflow == 0

    @property
    def small_share(self) -> float:
        """The share of elements that lose bits at the small end, or vanish."""
        return (self.num_subnormal + self.num_zero) / max(self.num_elements, 1)

    @property
    def to_report(self) -> bool:
        return not self.fits or self.small_share > SMALL_SHARE

    def __str__(self) -> str:
        """One line for a person: what half does to this weight."""
        if not self.fits:
            return (
                f"{self.name}: {self.num_overflow} of {self.num_elements} elements overflow float16 (largest "
                f"{self.peak:.4g}); what reads it stays in float32"
            )
        return f"{self.name}: {100 * self.small_share:.0f} % of its elements lose bits or vanish in float16"


def weight_fit(name: str, array: np.ndarray) -> WeightFit:
    """How `array`, float32, fits. Overflow is counted exactly; the small end of a large weight in a sample of it."""
    flat = as_tensor(array).reshape(-1)
    peak = _finite_peak(flat)
    stride = max(flat.numel() // SAMPLE, 1)
    sample = flat[::stride].abs()
    scale = flat.numel() / max(sample.numel(), 1)
    small = int((sample < HALF_SMALLEST_NORMAL).sum()) - int((sample == 0).sum())
    zero = int((sample <= HALF_ROUNDS_TO_ZERO).sum()) - int((sample == 0).sum())
    overflow = 0
    if peak > HALF_MAX:
        overflow = int(((flat.abs() > HALF_MAX) & flat.isfinite()).sum())
    return WeightFit(
        name=name,
        num_elements=flat.numel(),
        num_overflow=overflow,
        num_subnormal=round(scale * (small - zero)),
        num_zero=round(scale * zero),
        peak=peak,
    )


def _finite_peak(flat: torch.Tensor) -> float:
    """The largest magnitude that is finite: -inf of an attention mask is itself in half."""
    if flat.numel() == 0:
        return 0.0
    low, high = (float(end) for end in torch.aminmax(flat))
    if np.isfinite(low) and np.isfinite(high):
        return max(-low, high)
    finite = flat[flat.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def half_tensor(name: str, tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """`tensor` in float16, computed when it is written: the model is never in memory in both precisions."""

    def convert() -> ir.TensorProtocol:
        wide = tensor.numpy()
        half = np.empty_like(wide, dtype=np.float16)  # a transposed view stays one
        torch.from_numpy(half).copy_(as_tensor(wide))  # with the processor's own instruction
        return ir.Tensor(half, name=name)

    load: Callable[[], ir.TensorProtocol] = convert
    return ir.LazyTensor(load, dtype=ir.DataType.FLOAT16, shape=ir.Shape(tensor.shape.numpy()), name=name)
