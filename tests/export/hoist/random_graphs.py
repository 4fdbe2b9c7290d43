"""Random steps of three inputs x, t, p of shape [batch, 4]; every operator of the generator keeps this shape."""

from dataclasses import dataclass

import onnx_ir as ir
from hypothesis import strategies as st

from tests.export.hoist.graphs import parsed

# {a}, {b}: values; {r}: the result, and the prefix of what is between. Some mix rows, some take sizes as numbers.
UNARY = (
    "{r} = Sigmoid({a})",
    "{r} = MatMul({a}, w_square)",
    "{r}h = MatMul({a}, w_up) {r}s = Sin({r}h) {r} = MatMul({r}s, w_down)",
    "{r} = Gemm({a}, w_square, w_bias)",
    "{r} = Softmax({a})",
    "{r} = Softmax <axis = 0> ({a})",
    "{r} = CumSum({a}, zero)",
    "{r}m = ReduceMean <keepdims = 1> ({a}, zeros) {r}s = Shape({a}) {r} = Expand({r}m, {r}s)",
    "{r}m = ReduceMean <keepdims = 1> ({a}, ones) {r}s = Shape({a}) {r} = Expand({r}m, {r}s)",
    "{r}v = Reshape({a}, two_by_two) {r}t = Transpose <perm = [0, 2, 1]> ({r}v) {r} = Reshape({r}t, rows_of_four)",
    "{r}t = Transpose({a}) {r}u = MatMul({r}t, {a}) {r}k = Sin({r}u) {r} = MatMul({a}, {r}k)",
    "{r}u = Unsqueeze({a}, ones) {r}n = Neg({r}u) {r} = Squeeze({r}n, ones)",
    "{r}l, {r}r = Split <axis = 1> ({a}, halves) {r} = Concat <axis = 1> ({r}r, {r}l)",
    "{r}s = Shape <start = 0, end = 1> ({a}) {r}f = Cast <to = 1> ({r}s) {r}i = Reciprocal({r}f) {r} = Mul({a}, {r}i)",
    "{r}b = Greater({a}, w_bias) {r}c = Cast <to = 1> ({r}b) {r} = Add({r}c, w_bias)",
    "{r}d = Cast <to = 11> ({a}) {r}e = Sin({r}d) {r} = Cast <to = 1> ({r}e)",
    "{r}h = Gather <axis = 0> ({a}, zero) {r}n = Sigmoid({r}h) {r} = Add({a}, {r}n)",
    '{r} = Einsum <equation = "bi,ij->bj"> ({a}, w_square)',
)
BINARY = (
    "{r} = Add({a}, {b})",
    "{r}s = Sin({a}) {r} = Mul({r}s, {b})",
    "{r}s = Shape({b}) {r}m = ReduceMax <keepdims = 1> ({a}, ones) {r} = Expand({r}m, {r}s)",
    "{r}c = Concat <axis = 1> ({a}, {b}) {r} = MatMul({r}c, w_down8)",
    "{r}g = Greater({a}, {b}) {r} = Where({r}g, {a}, {b})",
)
CONSTANTS = (
    "<int64 zero = {0}, int64[1] zeros = {0}, int64[1] ones = {1}, int64[3] two_by_two = {-1, 2, 2}, "
    "int64[2] rows_of_four = {-1, 4}, int64[2] halves = {2, 2}>"
)


@dataclass(frozen=True)
class RandomStep:
    """A model, and its text for hypothesis to show."""

    text: str

    @property
    def model(self) -> ir.Model:
        weights = {"w_square": (4, 4), "w_up": (4, 32), "w_down": (32, 4), "w_down8": (8, 4), "w_bias": (4,)}
        return parsed(self.text, **{name: shape for name, shape in weights.items() if name in self.text})


@st.composite
def random_steps(draw: st.DrawFn) -> RandomStep:
    values, unread = ["x", "t", "p"], ["x", "t", "p"]
    lines = []
    for index in range(draw(st.integers(2, 10))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        template = draw(st.sampled_from(UNARY + BINARY))
        lines.append(template.format(a=a, b=b, r=f"v{index}_"))
        read = {a, b} if "{b}" in template else {a}
        unread = [value for value in unread if value not in read] + [f"v{index}_"]
        values.append(f"v{index}_")
    total = unread[0]
    for index, value in enumerate(unread[1:]):  # nothing is dead, and nothing cancels
        lines.append(f"s{index} = Sin({total}) u{index} = Add(s{index}, {value})")
        total = f"u{index}"
    lines.append(f"y = Identity({total})")
    inputs = ", ".join(f"float[batch, 4] {name}" for name in "xtp")
    return RandomStep(f"({inputs}) => (float[batch, 4] y) {CONSTANTS} {{ {' '.join(lines)} }}")
