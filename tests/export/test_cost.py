"""The cost model against counts made by hand and against torch's own counter."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from export.cost import CostError, cost_of_graph, cost_of_node, model_with_static_shapes, value_bytes
from tests.export.hoist.architectures import traced

DIMS = {"batch": 3}


def model_of(text: str, **initializers: tuple[int, ...]) -> ir.Model:
    """A model from ONNX's text form, with zero float32 initializers of the given shapes."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 18]> {text}')
    for name, shape in initializers.items():
        placeholder = next(value for node in model.graph for value in node.inputs if value and value.name == name)
        tensor = ir.tensor(np.zeros(shape, np.float32), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape))
        placeholder.replace_all_uses_with(value)
        if placeholder in model.graph.inputs:
            model.graph.inputs.remove(placeholder)
        model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize(
    ("text", "weights", "flops"),
    [
        ("g (float[batch,4,5] x, float[5,7] w) => (float[batch,4,7] y) {y = MatMul(x, w)}",
         {"w": (5, 7)}, 2 * 3 * 4 * 5 * 7),
        ("g (float[batch,5] x, float[7,5] w, float[7] b) => (float[batch,7] y) {y = Gemm<transB=1>(x, w, b)}",
         {"w": (7, 5), "b": (7,)}, 2 * 3 * 5 * 7 + 3 * 7),
        ("g (float[5,batch] x, float[5,7] w) => (float[batch,7] y) {y = Gemm<transA=1>(x, w)}",
         {"w": (5, 7)}, 2 * 3 * 5 * 7),
        ("g (float[batch,4,8,8] x, float[6,2,3,3] w) => (float[batch,6,8,8] y) "
         "{y = Conv<group=2,pads=[1,1,1,1]>(x, w)}",
         {"w": (6, 2, 3, 3)}, 2 * 3 * 6 * 64 * 2 * 9),
        ("g (float[batch,4,8,8] x, float[4,6,2,2] w) => (float[batch,6,16,16] y) "
         "{y = ConvTranspose<strides=[2,2]>(x, w)}",
         {"w": (4, 6, 2, 2)}, 2 * 3 * 4 * 64 * 6 * 4),
        ('g (float[batch,4,5] x, float[5,7] w) => (float[batch,4,7] y) {y = Einsum<equation="...i,ij->...j">(x, w)}',
         {"w": (5, 7)}, 2 * 3 * 4 * 5 * 7),
        ('g (float[batch,4] x) => (float[4,batch] y) {y = Einsum<equation="ab->ba">(x)}', {}, 0),
        ('g (float[batch,4] x) => (float[batch] y) {y = Einsum<equation="ab->a">(x)}', {}, 3 * 4),
        ("g (float[batch,4] x) => (float[batch,4] y) {y = Softmax(x)}", {}, 5 * 12),
        ("g (float[batch,4] x, float[4] w) => (float[batch,4] y) {y = LayerNormalization(x, w)}", {"w": (4,)}, 7 * 12),
        ("g (float[batch,4] x) => (float[batch,1] y) {y = ReduceMax(x)}", {}, 12),
        ("g (float[batch,1] x, float[4] w) => (float[batch,4] y) {y = Add(x, w)}", {"w": (4,)}, 12),
        ("g (float[batch,2,8,8] x) => (float[batch,2,4,4] y) {y = AveragePool<kernel_shape=[2,2],strides=[2,2]>(x)}",
         {}, 3 * 2 * 16 * 4),
        ("g (float[batch,4] x) => (float[4,batch] y) {y = Transpose(x)}", {}, 0),
    ],
)  # fmt: skip
def test_flops_and_parameters_by_hand(text: str, weights: dict[str, tuple[int, ...]], flops: int) -> None:
    model = model_of(text, **weights)
    cost = cost_of_graph(model, DIMS)
    parameters = sum(int(np.prod(shape)) for shape in weights.values())
    assert (cost.nodes, cost.flops, cost.parameters, cost.weight_bytes) == (1, flops, parameters, 4 * parameters)
    node = cost_of_node(model.graph[0], DIMS)
    assert (node.flops, node.parameters, node.weight_bytes) == (flops, parameters, 4 * parameters)


def test_a_weight_that_two_nodes_use_is_counted_once() -> None:
    model = model_of(
        "g (float[batch,5] x, float[5,5] w) => (float[batch,5] y) {h = MatMul(x, w) y = MatMul(h, w)}", w=(5, 5)
    )
    assert cost_of_graph(model, DIMS).parameters == 25


def test_integer_initializers_have_bytes_but_are_no_parameters() -> None:
    model = model_of("g (float[batch,4] x) => (float[2,k] y) <int64[2] s = {2, -1}> {y = Reshape(x, s)}")
    cost = cost_of_graph(model, DIMS)
    assert (cost.parameters, cost.weight_bytes, cost.flops) == (0, 16, 0)


def test_gather_reads_its_rows_not_its_table() -> None:
    text = "g (int64[batch] i, float[100,8] w) => (float[batch,8] y) {y = Gather(w, i)}"
    node = cost_of_node(model_of(text, w=(100, 8)).graph[0], DIMS)
    assert (node.weight_bytes, node.weight_bytes_read) == (3200, 3 * 8 * 4)


def test_symbolic_expressions_of_dims_are_bound() -> None:
    model = model_of("g (float[batch,branches] x) => (float[rows] y) <int64[1] s = {-1}> {y = Reshape(x, s)}")
    model.graph.outputs[0].shape = ir.Shape(["batch*branches"])
    assert value_bytes(model.graph.outputs[0], {"batch": 3, "branches": 2}) == 24


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("g (float[batch,4] x) => (float[4,batch] y) {y = Transpose(x)}")
    before = str(model)
    static = model_with_static_shapes(model, DIMS)
    assert str(model) == before
    assert static.graph.outputs[0].shape == ir.Shape([4, 3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[other,4] x) => (float[other,4] y) {y = Relu(x)}",
         r"input 'x' has the shape \[other,4\]; bind other \(bound: batch\)"),
        ("g (float[batch,4] x) => (float[n,m] y) {y = Custom(x)}",
         r"bind m, n|no convention for the FLOPs of node .*onnx\.Custom"),
        ("g (float[batch] x) => (float[n] y) {i = NonZero(x) f = Cast<to=1>(i) y = Exp(f)}", r"of node .*Exp"),
        ("g (bool c, float[4] x) => (float[4] y) {y = If(c) <then_branch = a () => (float[4] p) {p = Exp(x)}, "
         "else_branch = b () => (float[4] q) {q = Neg(x)}>}", r"\(If\) has a subgraph"),
    ],
)  # fmt: skip
def test_what_has_no_cost_is_an_error_that_names_the_node(text: str, message: str) -> None:
    with pytest.raises(CostError, match=message):
        cost_of_graph(model_of(text), DIMS)


def test_dit_has_the_flops_that_torch_counts() -> None:
    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    inputs = {"hidden_states": torch.randn(3, 4, 8, 8), "timestep": torch.ones(3), "class_labels": torch.arange(3)}
    batch = torch.export.Dim("batch")
    model = traced(net, {name: (example, {0: batch}) for name, example in inputs.items()}, return_dict=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        net(**inputs)
    static = model_with_static_shapes(model, DIMS)
    contractions = 0
    for node in static.graph:
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            bias = node.op_type != "MatMul" and len(node.inputs) > 2
            outputs = value_bytes(node.outputs[0], DIMS) // 4
            contractions += cost_of_node(node, DIMS).flops - bias * outputs  # torch does not count the bias
    width = 32  # the conditioning that DiT computes a second time for its last layer is one subexpression in the graph
    assert contractions == counter.get_total_flops() - 2 * 3 * (256 * width + width * width)
    cost = cost_of_graph(model, DIMS)
    assert contractions < cost.flops < 1.2 * contractions
    buffers = net.pos_embed.pos_embed.numel()
    assert cost.parameters == pytest.approx(sum(p.numel() for p in net.parameters()) + buffers, rel=0.02)
