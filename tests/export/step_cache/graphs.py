"""Residual streams in code: blocks with the trace's notes, one or two values wide, for the tests of the split."""

import numpy as np
import onnx_ir as ir

ROWS, WIDTH = 3, 4
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


class Stream:
    """Builds `history`, `input_row`, `shift` -> `prediction`, block by block."""

    def __init__(self, dtype: ir.DataType = FLOAT) -> None:
        self.dtype = dtype
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.inputs = {
            name: ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(FLOAT))
            for name, shape in (("history", ["n", "rows", WIDTH]), ("input_row", ["n"]), ("shift", [1, WIDTH]))
        }
        self.random = np.random.default_rng(0)
        joined = self.op("Reshape", self.inputs["history"], self.weight("view", np.array([0, -1])), width=None)
        line = self.op("MatMul", self.inputs["input_row"], joined, width=None)
        self.hidden = self.cast(self.op("Reshape", line, self.weight("back", np.array([-1, WIDTH]))), dtype)

    def op(
        self, kind: str, *inputs: ir.Value, scope: str = "", width: int | None = WIDTH, **attributes: object
    ) -> ir.Value:
        node = ir.node(kind, inputs, attributes, name=f"node_{len(self.nodes)}")
        if scope:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = str(["", "net", scope, f"{kind}_{len(self.nodes)}"])
        value = node.outputs[0]
        value.name, value.shape = f"value_{len(self.nodes)}", ir.Shape(["rows", width]) if width else None
        value.type = ir.TensorType(inputs[0].dtype or FLOAT)
        self.nodes.append(node)
        return value

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype is dtype:
            return value
        made = self.op("Cast", value, to=dtype)
        made.type = ir.TensorType(dtype)
        return made

    def weight(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        self.weights.append(value)
        return value

    def matrix(self, name: str, rows: int = WIDTH, columns: int = WIDTH) -> ir.Value:
        values = self.random.normal(0, 0.4, (rows, columns)).astype(self.dtype.numpy())
        return self.weight(name, values)

    def block(self, scope: str, value: ir.Value) -> ir.Value:
        """value + tanh(float32(value) @ w + shift), as half precision writes it: a cast without a note."""
        wide = self.cast(value, FLOAT)
        inner = self.op("Add", wide, self.inputs["shift"], scope=scope)
        inner = self.op("MatMul", self.cast(inner, self.dtype), self.matrix(f"{scope}.w"), scope=f"{scope}.ff")
        return self.op("Add", value, self.op("Tanh", inner, scope=f"{scope}.ff"), scope=scope)

    def model(self, prediction: ir.Value) -> ir.Model:
        """The graph, with float32 in and out."""
        last = self.cast(prediction, FLOAT)
        last.name = "prediction"
        graph = ir.Graph(
            list(self.inputs.values()), [last], nodes=self.nodes, initializers=self.weights, opset_imports={"": 18}
        )
        return ir.Model(graph, ir_version=10)


def single(blocks: int, dtype: ir.DataType = FLOAT) -> ir.Model:
    """A denoiser of one stream: `net.blocks.0` … and a last layer without a block."""
    stream = Stream(dtype)
    hidden = stream.hidden
    for number in range(blocks):
        hidden = stream.block(f"net.blocks.{number}", hidden)
    return stream.model(stream.op("MatMul", hidden, stream.matrix("net.out"), scope="net"))


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
    """For any of these graphs."""
    random = np.random.default_rng(seed)
    shapes = {"history": (2, ROWS, WIDTH), "input_row": (2,), "shift": (1, WIDTH)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
