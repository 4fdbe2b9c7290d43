"""Small graphs for the hoisting tests, in ONNX's text form, with random weights."""

import numpy as np
import onnx
import onnx_ir as ir

from export.hoist import CostModel, InputClass, Partition, partition

PROMPT, SCHEDULE, LOOP = InputClass.PROMPT, InputClass.SCHEDULE, InputClass.LOOP
DIMS = {"batch": 2}
TRAFFIC_ONLY = CostModel(DIMS, held_weight=0.0, part_bytes=0)  # hoists whatever saves anything


def parsed(text: str, **weights: tuple[int, ...]) -> ir.Model:
    """`(inputs) => (outputs) { nodes }`; `weights` are random float32 initializers by shape."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> main {text}')
    generator = np.random.default_rng(0)
    for name, shape in weights.items():
        array = generator.normal(0, 0.5, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def cut(model: ir.Model, cost_model: CostModel = TRAFFIC_ONLY, **classes: InputClass) -> Partition:
    return partition(model, classes, cost_model)


def operators(model: ir.Model | None) -> list[str]:
    return [] if model is None else [node.op_type for node in model.graph]


def adaln() -> ir.Model:
    """x [batch, 4], t [batch], p [batch, 4] -> y: a layer whose scale comes from t and p."""
    return parsed(
        """(float[batch, 4] x, float[batch] t, float[batch, 4] p) => (float[batch, 4] y) {
            e = Unsqueeze(t, one)  h = MatMul(e, w_t)  c = MatMul(p, w_p)  s = Add(h, c)  a = Sigmoid(s)
            m = MatMul(a, w_m)  n = MatMul(x, w_x)  y = Mul(n, m)
        }""".replace("=> (float[batch, 4] y) {", "=> (float[batch, 4] y) <int64[1] one = {1}> {"),
        w_t=(1, 16), w_p=(4, 16), w_m=(16, 4), w_x=(4, 4),
    )  # fmt: skip
