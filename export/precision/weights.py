"""What float16 can hold of a weight, and the weight in float16, one tensor at a time.

float16 (IEEE 754 binary16): largest 65504, smallest normal 2^-14 = 6.1e-5, smallest subnormal 2^-24; what is below
2^-25 becomes zero. bfloat16 and float32 weights go far beyond both ends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

HALF_MAX = 65504.0
HALF_SMALLEST_NORMAL = 2.0**-14
HALF_ROUNDS_TO_ZERO = 2.0**-25
# A weight drawn from N(0, 0.02²) has 0.25 % of its elements below 2^-14; twenty times that is worth a word.
SMALL_SHARE = 0.05


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


def weight_fit(name: str, tensor: ir.TensorProtocol) -> WeightFit:
    """Reads `tensor` (float32 or bfloat16) once and lets go of it."""
    magnitude = np.abs(tensor.numpy().astype(np.float32, copy=False))
    finite = np.isfinite(magnitude)  # -inf of an attention mask is itself in half
    return WeightFit(
        name=name,
        num_elements=magnitude.size,
        num_overflow=int(np.count_nonzero((magnitude > HALF_MAX) & finite)),
        num_subnormal=int(np.count_nonzero((magnitude < HALF_SMALLEST_NORMAL) & (magnitude > HALF_ROUNDS_TO_ZERO))),
        num_zero=int(np.count_nonzero((magnitude <= HALF_ROUNDS_TO_ZERO) & (magnitude > 0))),
        peak=float(magnitude[finite].max(initial=0.0)),
    )


def half_tensor(name: str, tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """`tensor` in float16, computed when it is written: the model is never in memory in both precisions."""

    def convert() -> ir.TensorProtocol:
        array: npt.NDArray[np.float32] = tensor.numpy()
        return ir.tensor(array.astype(np.float16), name=name)

    load: Callable[[], ir.TensorProtocol] = convert
    return ir.LazyTensor(load, dtype=ir.DataType.FLOAT16, shape=ir.Shape(tensor.shape.numpy()), name=name)
