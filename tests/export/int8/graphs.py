"""A transformer block in small for the int8 tests, and numpy's own model of an int8 layer."""

import numpy as np
import onnx_ir as ir

from tests.export.precision.graphs import matrix, parsed

WIDTH, TOKENS = 128, 24


def block(*, outlier: float = 1.0, weights: dict[str, np.ndarray] | None = None) -> ir.Model:
    """x -> norm, scale and shift by a row -> q and k (one with a bias) -> their product with a residual -> prediction.

    `outlier` multiplies the scale of one channel of the normalised activation.
    """
    scale = np.ones(WIDTH, np.float32)
    scale[5] = outlier
    constants = {
        "gamma": scale,
        "w_q": matrix(1, WIDTH, WIDTH),
        "w_k": matrix(2, WIDTH, WIDTH),
        "b_q": matrix(3, WIDTH),
        "w_out": matrix(4, WIDTH, WIDTH, scale=0.05),
        "w_small": matrix(5, WIDTH, 4),
    } | (weights or {})
    return parsed(
        """
        n = LayerNormalization(x, gamma)
        m = Mul(n, row)
        s = Add(shift, m)
        q0 = MatMul(s, w_q)
        q = Add(q0, b_q)
        k = MatMul(s, w_k)
        a = Mul(q, k)
        g = Tanh(a)
        o = MatMul(g, w_out)
        r = Add(x, o)
        prediction = MatMul(r, w_small)
        """,
        inputs=f"float[b, {TOKENS}, {WIDTH}] x, float[b, 1, {WIDTH}] row, float[b, 1, {WIDTH}] shift",
        output=f"float[b, {TOKENS}, 4] prediction",
        constants=constants,
    )


def feed(seed: int = 0, batch: int = 2) -> dict[str, np.ndarray]:
    """Inputs of `block`."""
    return {
        "x": matrix(seed, batch, TOKENS, WIDTH, scale=1.0),
        "row": 1 + matrix(seed + 1, batch, 1, WIDTH),
        "shift": matrix(seed + 2, batch, 1, WIDTH),
    }


def int8_layer(x: np.ndarray, codes: np.ndarray, scales: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """What ONNX says of DynamicQuantizeLinear and MatMulInteger, in numpy: float32 [..., N]."""
    low, high = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes_x = np.clip(np.rint(x / scale) + zero, 0, 255)
    total = (codes_x - zero).astype(np.int64) @ codes.astype(np.int64)
    result = total.astype(np.float64) * scale * scales
    return (result if bias is None else result + bias).astype(np.float32)
