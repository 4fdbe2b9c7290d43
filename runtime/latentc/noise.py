"""Normal noise, equal to `torch.randn` on a CPU generator of the same seed, drawn without torch.

What torch does (aten/src/ATen/native/cpu/DistributionTemplates.h and core/DistributionsHelper.h):
MT19937 seeded with the low 32 bits of the seed. Sixteen values or more: 24-bit uniforms for all of
them, then Box-Muller on blocks of 16 (first 8 the radii, last 8 the angles); if the count is no
multiple of 16, the last 16 values are drawn again from fresh uniforms. Fewer than sixteen: one value
at a time in double precision from 53-bit uniforms, the second one of each pair kept for the next
call. Equal to torch to 5e-7 (its vectorised log and cos are not numpy's).
"""

import math

import numpy as np
import numpy.typing as npt

from latentc.errors import RequestError

MAX_SEED = 2**64 - 1
_BLOCK = 16  # torch's scalar path ends, and its vectorised blocks begin, at this many values


class NormalStream:
    """A stream of unit normal draws; successive draws continue it, as torch's generator does."""

    def __init__(self, seed: int) -> None:
        if not 0 <= seed <= MAX_SEED:
            raise RequestError(f"seed {seed} is out of range; give 0 to {MAX_SEED}")
        # RandomState(int) is MT19937's own init_genrand, which is what torch calls; numpy's newer
        # Generator would hash the seed first.
        self._bits = np.random.RandomState(seed & 0xFFFFFFFF)
        self._kept: float | None = None

    def draw(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """float32 [*shape], the values of `torch.randn(shape, generator=...)`."""
        count = math.prod(shape)
        values = self._draw_few(count) if count < _BLOCK else self._draw_many(count)
        return values.reshape(shape)

    def _draw_many(self, count: int) -> npt.NDArray[np.float32]:
        uniforms = self._uniforms(count)
        whole = count - count % _BLOCK
        values = np.empty(count, np.float32)
        values[:whole] = _box_muller(uniforms[:whole])
        if whole != count:
            values[-_BLOCK:] = _box_muller(self._uniforms(_BLOCK))
        return values

    def _draw_few(self, count: int) -> npt.NDArray[np.float32]:
        values = np.empty(count, np.float32)
        for i in range(count):
            if self._kept is not None:
                values[i], self._kept = self._kept, None
                continue
            angle, radius = 2.0 * math.pi * self._uniform53(), math.sqrt(-2.0 * math.log1p(-self._uniform53()))
            values[i], self._kept = radius * math.cos(angle), radius * math.sin(angle)
        return values

    def _uint32(self, count: int) -> npt.NDArray[np.uint32]:
        return self._bits.randint(0, 2**32, size=count, dtype=np.uint32)

    def _uniforms(self, count: int) -> npt.NDArray[np.float32]:
        return (self._uint32(count) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)

    def _uniform53(self) -> float:
        high, low = (int(word) for word in self._uint32(2))
        return float((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(uniforms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [16 n] in [0, 1) to float32 [16 n] unit normals, in blocks of 8 radii and 8 angles."""
    blocks = uniforms.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2.0) * np.log(np.float32(1.0) - blocks[:, 0]))  # [n, 8]
    angle = np.float32(2.0 * math.pi) * blocks[:, 1]  # [n, 8]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
