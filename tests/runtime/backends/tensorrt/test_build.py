"""What the builder is told on each version, and what a user is told when it fails."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from latentc.backends import open_backend
from latentc.backends.options import EngineOptions
from latentc.bundle import open_bundle
from latentc.engines import build_engines
from latentc.errors import BackendError, BundleError
from onnx import TensorProto, helper, numpy_helper

from tests.runtime import toy
from tests.runtime.backends.tensorrt.conftest import VERSIONS, Machine


def build(machine: Machine, path: Path, version: str, **options: object) -> list[dict[str, object]]:
    """The configurations of the builds of a bundle."""
    _, module = machine(version)
    build_engines(open_bundle(path), open_backend("tensorrt", options=EngineOptions(**options)))
    return module.world.builds


def replace_graph(path: Path, name: str, model: onnx.ModelProto, weights: bytes = b"") -> None:
    """Another graph in a bundle, hashed again."""
    (path / f"graphs/{name}.onnx").write_bytes(model.SerializeToString())
    (path / f"graphs/{name}.weights").write_bytes(weights)
    toy.seal(path, toy.read_manifest(path))


@pytest.mark.parametrize("version", VERSIONS)
def test_flags(machine: Machine, bundle: Path, version: str) -> None:
    for config in build(machine, bundle, version):
        obey = ["OBEY_PRECISION_CONSTRAINTS"] if version == "8.6.1" else []
        assert config["flags"] == obey, "TF32 must be off, and nothing else on"
        sharing = [] if version == "11.4.0.106" else ["PROFILE_SHARING_0806"]
        resizing = ["RUNTIME_ACTIVATION_RESIZE_10_10"] if version in ("10.13.3.9", "11.4.0.106") else []
        assert config["previews"] == dict.fromkeys(sharing + resizing, True)
        assert config["pools"] == {}
        assert config["level"] is None


def test_every_option_reaches_the_builder(machine: Machine, bundle: Path) -> None:
    given = {"workspace": 1 << 29, "opt_level": 5, "version_compatible": True, "hardware_compatible": True}
    for config in build(machine, bundle, "10.3.0", strip_weights=True, **given):
        assert config["flags"] == ["EXCLUDE_LEAN_RUNTIME", "REFIT_IDENTICAL", "STRIP_PLAN", "VERSION_COMPATIBLE"]
        assert config["pools"] == {"WORKSPACE": 1 << 29}
        assert config["level"] == 5
        assert config["hardware"].name == "AMPERE_PLUS"
    shutil.rmtree(bundle / "engines")
    assert all(c["flags"] == ["WEIGHT_STREAMING"] for c in build(machine, bundle, "11.4.0.106", weight_streaming=500))


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ("8.6.1", {"strip_weights": True}, "--strip-weights needs TensorRT 10.0 or newer; this is 8.6.1"),
        ("8.6.1", {"weight_streaming": 5}, "--weight-streaming needs TensorRT 10.0 or newer; this is 8.6.1"),
        ("10.3.0", {"strip_weights": True, "weight_streaming": 5}, "exclude each other"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_build(
    machine: Machine, bundle: Path, version: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        build(machine, bundle, version, **options)
    assert [path.name for path in (bundle / "engines").iterdir()] == []


def test_the_lean_runtime_cannot_build(machine: Machine, bundle: Path) -> None:
    machine("10.3.0", lean=True)
    with pytest.raises(BackendError, match="the lean runtime cannot build engines; pip install tensorrt"):
        build_engines(open_bundle(bundle), open_backend("tensorrt"))


def half_graph() -> onnx.ModelProto:
    """z = float(half(x) · half(w)) + 1: one half product between casts, and a sum in float32."""
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "z"))
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 2]) for name in ("half", "product")]
    weights = [numpy_helper.from_array(np.ones((2, 2), np.float16), "w")]
    weights.append(numpy_helper.from_array(np.ones((2, 2), np.float32), "one"))
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["product"], name="product_node"),
        helper.make_node("Cast", ["product"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["single", "one"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [z], weights, value_info=inner)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_on_8_6_every_layer_is_pinned_to_the_graphs_types(machine: Machine, bundle: Path) -> None:
    _, module = machine("8.6.1")
    from latentc.backends.tensorrt.build import plan_of
    from latentc.backends.tensorrt.library import open_library
    from latentc.bundle import GraphBytes

    model = GraphBytes("g", memoryview(half_graph().SerializeToString()), "g.weights", memoryview(b""))
    plan_of(open_library(), model, {}, EngineOptions(), None)
    (config,) = module.world.builds
    assert config["flags"] == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
    half, single = module.DataType.HALF, module.DataType.FLOAT
    kinds = [layer[0].name for layer in config["layers"]]
    assert kinds == ["CAST", "ELEMENTWISE", "CAST", "ELEMENTWISE"]
    assert [layer[1:] for layer in config["layers"]] == [
        ({}, None),
        ({0: half}, half),
        ({}, None),
        ({0: single}, single),
    ]


def test_on_10_the_network_is_strongly_typed_and_nothing_is_pinned(machine: Machine, bundle: Path) -> None:
    for config in build(machine, bundle, "10.3.0"):
        assert all(types == {} and precision is None for _, types, precision in config["layers"])


def test_timings_are_kept_beside_the_engines_and_used_again(machine: Machine, bundle: Path) -> None:
    first = build(machine, bundle, "10.3.0")
    file = bundle / "engines/tensorrt-10.3.0-sm87.timing"
    assert [config["cache"] for config in first] == ["", "timings"]
    assert file.read_bytes() == b"timings"
    second = build(machine, bundle, "10.3.0", opt_level=1)  # another engine, the same kernels
    assert [config["cache"] for config in second] == ["timings", "timings"]
    file.write_bytes(b"timing!")  # damaged
    assert build(machine, bundle, "10.3.0", opt_level=2)[0]["cache"] == ""
    assert file.read_bytes() == b"timings"
    file.write_bytes(b"another device")
    seal = __import__("hashlib").sha256(b"another device").hexdigest()
    file.with_name(f"{file.name}.sha256").write_text(f"{seal}  {file.name}\n")
    assert build(machine, bundle, "10.3.0", opt_level=3)[0]["cache"] == ""


def test_progress_is_shown_on_a_terminal(machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    build(machine, bundle, "10.3.0")
    shown = sys.stderr.getvalue()
    assert "build denoise [###############...............] 1/2" in shown
    assert shown.endswith("\r\033[K"), "the bar goes when the build is done"
    monkeypatch.setattr(sys, "stderr", Terminal())
    build(machine, bundle, "8.6.1")
    assert sys.stderr.getvalue() == ""


def test_what_the_parser_cannot_read_is_named_by_our_node(machine: Machine, bundle: Path) -> None:
    model = onnx.load_model_from_string((bundle / "graphs/decode.onnx").read_bytes())
    model.graph.node[1].domain = "unknown"
    node = model.graph.node[1]
    replace_graph(bundle, "decode", model, (bundle / "graphs/decode.weights").read_bytes())
    for version in ("8.6.1", "10.3.0"):
        with pytest.raises(BackendError) as caught:
            build(machine, bundle, version)
        expected = (
            f"TensorRT cannot read node {node.name or node.output[0]} ({node.op_type}) of graph decode: no importer"
        )
        assert str(caught.value).startswith(expected)
        assert [path.name for path in (bundle / "engines").glob("*/*.plan")] == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            "Error Code 10: Could not find any implementation for node {ForeignNode[A...C]}.",
            "TensorRT cannot build graph denoise at node A (Add) to C: Error Code 10: Could not find any",
        ),
        ("Error Code 2: OutOfMemory (no node)", "TensorRT cannot build graph denoise: Error Code 2: OutOfMemory"),
    ],
)
def test_what_the_builder_cannot_build_is_named_by_our_nodes(
    machine: Machine, bundle: Path, error: str, expected: str
) -> None:
    model = onnx.load_model_from_string((bundle / "graphs/denoise.onnx").read_bytes())
    for name, op_type in (("A", "Add"), ("B", "Mul"), ("C", "Mul")):
        node = next(n for n in model.graph.node if (n.op_type == op_type and n.name not in "ABC") or not n.name)
        node.name, node.op_type = name, op_type
    replace_graph(bundle, "denoise", model, (bundle / "graphs/denoise.weights").read_bytes())
    _, module = machine("10.3.0")
    module.world.build_error = error
    with pytest.raises(BackendError) as caught:
        build_engines(open_bundle(bundle), open_backend("tensorrt"))
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("location", ["other.weights", "/etc/hostname", "../tables/plain-2.safetensors"])
def test_a_model_cannot_name_other_weights(machine: Machine, bundle: Path, location: str) -> None:
    model = half_graph()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    replace_graph(bundle, "decode", model)
    with pytest.raises(BundleError, match=r"graph decode names weights in .*; the bundle lists decode.weights"):
        build(machine, bundle, "10.3.0")


def test_weights_that_change_under_the_parser_are_found(
    machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bundle / "graphs/decode.weights"
    assert file.stat().st_size > 0, "the toy's weights lie outside of its model"
    _, module = machine("10.3.0")
    opened, backend = open_bundle(bundle), open_backend("tensorrt")
    parse = module.OnnxParser.parse

    def swap(self: object, model: bytes, path: str | None = None) -> bool:
        if "decode" in str(path):
            other = file.with_name("other")
            other.write_bytes(bytes(len(file.read_bytes())))
            other.replace(file)
        return bool(parse(self, model, path))

    monkeypatch.setattr(module.OnnxParser, "parse", swap)
    with pytest.raises(BundleError, match=r"decode.weights was changed while it was read; run latentc build again"):
        build_engines(opened, backend)
