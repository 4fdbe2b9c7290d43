"""Which convolutions of a decoder are int8: by the picture, the worst first back to float32."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.int8.decoder import DecoderGate, choose_convolutions, written_decoder
from export.runner import run_model

SIDE, WIDTH = 6, 16
RNG = np.random.default_rng(0)


def decoder(spoiled: bool = False) -> ir.Model:
    """latents [b, 16, 6, 6] -> three convolutions -> image [b, 3, 6, 6] in [0, 1]."""
    weights = [(RNG.standard_normal((WIDTH, WIDTH, 3, 3)) * 0.08).astype(np.float32) for _ in range(2)]
    if spoiled:  # a large weight, of an input that is always 0, takes the levels of all others
        weights[0][0], weights[1][:, 0, 0, 0] = 0, 400
    weights.append((RNG.standard_normal((3, WIDTH, 1, 1)) * 0.02).astype(np.float32))
    nodes, source = [], "latents"
    for index in range(3):
        pads = [1] * 4 if index < 2 else [0] * 4
        nodes.append(helper.make_node("Conv", [source, f"w{index}"], [f"y{index}"], name=f"conv{index}", pads=pads))
        activation, result = ("Relu", f"a{index}") if index < 2 else ("Sigmoid", "image")
        nodes.append(helper.make_node(activation, [f"y{index}"], [result]))
        source = f"a{index}"
    graph = helper.make_graph(
        nodes,
        "decode",
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["b", WIDTH, SIDE, SIDE])],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, SIDE, SIDE])],
        [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ir.from_proto(proto)


def latents(seed: int) -> dict[str, np.ndarray]:
    return {"latents": np.random.default_rng(seed).standard_normal((2, WIDTH, SIDE, SIDE)).astype(np.float32)}


def gate_of(model: ir.Model, psnr_db: float = 35.0) -> DecoderGate:
    drawn, compared = latents(1), latents(2)
    return DecoderGate(
        latents=drawn,
        picture=run_model(model, drawn)["image"],
        inputs=compared,
        image=run_model(model, compared)["image"],
        psnr_db=psnr_db,
        relative_l2=5e-2,
    )


def test_all_wide_ones_where_the_picture_holds_and_what_is_written_is_what_was_measured() -> None:
    model = decoder()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    gate = gate_of(model)
    report = choose_convolutions(model, [latents(1)], gate)
    assert report is not None
    assert set(report.errors) == {"conv0", "conv1"}  # conv2 makes the picture's three channels
    assert not report.kept
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    written = written_decoder(model, report)
    assert sum(node.op_type == "QLinearConv" for node in written.graph) == 2
    psnr, holds = gate.measure(written)
    assert holds
    assert psnr == pytest.approx(report.psnr_db)
    assert psnr < 100  # it is not float32


def test_the_worst_stays_where_the_picture_asks_for_it() -> None:
    model = decoder()
    loose = choose_convolutions(model, [latents(1)], gate_of(model))
    assert loose is not None
    assert loose.psnr_db is not None
    strict = choose_convolutions(model, [latents(1)], gate_of(model, psnr_db=loose.psnr_db))
    assert strict is not None
    worst = max(strict.errors, key=lambda name: strict.errors[name])
    assert strict.kept[0].name == worst
    assert "dB" in strict.kept[0].reason
    assert strict.psnr_db is None or strict.psnr_db > loose.psnr_db


def test_a_layer_that_eight_bits_spoil_stays_whatever_the_picture_says() -> None:
    model = decoder(spoiled=True)
    report = choose_convolutions(model, [latents(1)], replace(gate_of(model), psnr_db=1.0, relative_l2=10.0))
    assert report is not None
    assert report.errors["conv1"] > 0.1 > report.errors["conv0"]
    assert [layer.name for layer in report.kept] == ["conv1"]


def test_a_bound_that_nothing_holds_leaves_float32() -> None:
    model = decoder()
    report = choose_convolutions(model, [latents(1)], gate_of(model, psnr_db=300.0))
    assert report is not None
    assert report.num_int8 == 0
    assert report.psnr_db is None


def test_a_decoder_without_wide_convolutions_has_no_choice() -> None:
    model = decoder()
    for name in ("w0", "w1"):
        model.graph.initializers[name].const_value = ir.tensor(np.zeros((8, 8, 3, 3), np.float32), name=name)
    assert choose_convolutions(model, [], gate_of(decoder())) is None
