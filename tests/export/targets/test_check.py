"""The target check: silent on what parses, and each kind of finding on what does not."""

import numpy as np
import pytest

from export.targets import OPSETS, TARGETS, check_target
from export.targets.tensorrt_operators import TRT_8_6, TRT_10_3, TRT_11
from tests.export.passes.graphs import parsed

PLAIN = "17 (float[b, 8] x) => (float[b, 8] y) { m = MatMul(x, w) n = LayerNormalization(m, g) y = Softmax(n) }"
_WEIGHTS = {"w": np.eye(8, dtype=np.float32), "g": np.ones(8, np.float32)}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_against_a_plain_graph(target: str) -> None:
    assert check_target(parsed(PLAIN, _WEIGHTS), target) == []


# What each version reads, as NVIDIA's release notes say it: the tables must agree.
@pytest.mark.parametrize(
    ("operator", "since"),
    [
        ("LayerNormalization", "tensorrt-8.6"),
        ("InstanceNormalization", "tensorrt-8.6"),
        ("Einsum", "tensorrt-8.6"),
        ("Gelu", "tensorrt-10.3"),
        ("CastLike", "tensorrt-10.3"),
        ("Attention", "tensorrt-11"),
        ("RMSNormalization", "tensorrt-11"),
        ("RotaryEmbedding", "tensorrt-11"),
    ],
)
def test_the_tables_say_since_when(operator: str, since: str) -> None:
    tables = {"tensorrt-8.6": TRT_8_6, "tensorrt-10.3": TRT_10_3, "tensorrt-11": TRT_11}
    assert next(target for target, table in tables.items() if operator in table) == since
    assert set(TRT_8_6) <= set(TRT_10_3) <= set(TRT_11)


@pytest.mark.parametrize(
    ("text", "target", "problem"),
    [
        ("18 (float[2] x) => (float[2] y) { y = Abs(x) }", "tensorrt-8.6", "opset 18"),
        ("21 (float[2] x) => (float[2] y) { y = Abs(x) }", "tensorrt-10.3", "opset 21"),
        ("25 (float[2] x) => (float[2] y) { y = Abs(x) }", "tensorrt-11", "opset 25"),
        ("20 (float[2] x) => (float[2] y) { y = Gelu(x) }", "tensorrt-8.6", "only tensorrt-10.3, tensorrt-11 parse it"),
        ("17 (float[2] x) => (float[2] y) { y = Bernoulli(x) }", "tensorrt-11", "no TensorRT parses it"),
        ("19 (float[2] x) => (float8e4m3fn[2] y) { y = Cast<to=17>(x) }", "tensorrt-10.3", "FLOAT8E4M3FN"),
        ("17 (bfloat16[2] x) => (bfloat16[2] y) { y = Abs(x) }", "tensorrt-8.6", "x is BF16"),
        ("18 (float[2, 3] x) => (float[2, 1] y) { y = ReduceMean(x, one) }", "tensorrt-8.6", "ALL dims"),
        ("18 (float[3] x, int64[1] a) => (float[c] y) { y = ReduceMean(x, a) }", "tensorrt-10.3", "be an initializer"),
        ("18 (float[1, 4, 4] x) => (float[c, d, e] y) { y = Resize<mode=\"cubic\">(x, , s) }", "tensorrt-11", "mod"),
        ("18 (float[2, 2] x) => (float[c, d] y) { y = Pad(x, p, , one) }", "tensorrt-8.6", "axes are not read"),
        ('17 (float[3, 3] x) => (float[3] y) { y = Einsum<equation="aa->a">(x) }', "tensorrt-10.3", "diagonal"),
        ("17 (float[5] x) => (float[3] p, float[2] q) { p, q = Split(x, h) }", "tensorrt-8.6", None),
    ],
)  # fmt: skip
def test_findings(text: str, target: str, problem: str | None) -> None:
    constants = {
        "one": np.array([1], np.int64),
        "s": np.array([1, 2, 2], np.float32),
        "p": np.array([1, 1], np.int64),
        "h": np.array([3, 2], np.int64),
    }
    used = {name: array for name, array in constants.items() if f", {name}" in text}
    found = [str(finding) for finding in check_target(parsed(text, used), target)]
    if problem is None:
        assert found == []
    else:
        assert any(problem in finding for finding in found), found


def test_a_finding_names_the_node_and_a_remedy() -> None:
    finding = check_target(parsed("20 (float[2] x) => (float[2] y) { y = Gelu(x) }"), "tensorrt-8.6")[1]
    assert (finding.node, finding.operator) == ("Gelu_0", "Gelu")
    assert "clean_graph" in finding.remedy


def test_another_domain_needs_a_plugin_but_not_in_onnxruntime() -> None:
    model = parsed(PLAIN, _WEIGHTS)
    model.graph[2].domain = "com.microsoft"
    model.opset_imports["com.microsoft"] = 1
    assert "plugin" in check_target(model, "tensorrt-11")[0].problem
    assert check_target(model, "onnxruntime") == []


def test_onnxruntime_is_told_of_an_operator_that_does_not_exist() -> None:
    model = parsed(PLAIN, _WEIGHTS)
    model.graph[2].op_type = "Softmacks"
    assert "no such operator" in check_target(model, "onnxruntime")[0].problem


def test_integers_of_shapes_pass_in_8_6() -> None:
    text = "17 (float[b, 8] x) => (int64[2] y) { s = Shape(x) y = Concat<axis=0>(s) }"
    assert check_target(parsed(text), "tensorrt-8.6") == []


def test_each_target_is_written_in_an_opset_that_it_reads() -> None:
    for target in TARGETS:
        model = parsed(f"{OPSETS[target]} (float[2] x) => (float[2] y) {{ y = Abs(x) }}")
        assert check_target(model, target) == []
