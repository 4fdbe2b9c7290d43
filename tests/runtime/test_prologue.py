"""Prompt and schedule graphs, run once a request, against the same arithmetic in numpy."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.parser
import pytest
from latentc import schema
from latentc.backends import open_backend
from latentc.bundle import GraphBytes
from latentc.prologue import run_prologue
from latentc.prompt_cache import PromptCache
from latentc.schema import TensorSpec
from latentc.trajectory import Trajectory

from tests.runtime import toy

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
# prompt_0[r] = 10 · label of row r; rows[r] = (timestep, timestep + prompt_0) of row r
PROMPT = f"""{HEAD} prompt (int64[guidance_branches, batch] class_labels) => (float[rows, 1] prompt_0)
<int64[2] column = {{-1, 1}}, float ten = {{10.0}}>
{{ flat = Reshape(class_labels, column) real = Cast<to = 1>(flat) prompt_0 = Mul(real, ten) }}"""
SCHEDULE = f"""{HEAD} schedule
(float[guidance_branches, batch] timestep, float[rows, 1] prompt_0) => (float[rows, 2] rows)
<int64[2] column = {{-1, 1}}>
{{ t = Reshape(timestep, column) sum = Add(t, prompt_0) rows = Concat<axis = 1>(t, sum) }}"""
ROWS = "batch*guidance_branches"


def graph_bytes(name: str, text: str) -> GraphBytes:
    return GraphBytes(name, memoryview(onnx.parser.parse_model(text).SerializeToString()), "none", memoryview(b""))


def graph(inputs: list[TensorSpec], output: TensorSpec) -> schema.Graph:
    return schema.Graph(
        file="graphs/x.onnx", weights="graphs/x.weights", inputs=tuple(inputs), outputs=(output,),
        runs_once_per="request", nodes=1, parameters=0, weight_bytes=0, int8_bytes=0, flops=0, activation_bytes=0,
    )  # fmt: skip


@pytest.fixture
def manifest(pristine: Path) -> schema.Manifest:
    """The toy's manifest, with a prompt and a schedule graph and a loop that reads what they give."""
    labels = TensorSpec(name="class_labels", dtype="int64", shape=("guidance_branches", "batch"))
    timestep = TensorSpec(name="timestep", dtype="float32", shape=("guidance_branches", "batch"))
    prompt = TensorSpec(name="prompt_0", dtype="float32", shape=(ROWS, 1))
    rows = TensorSpec(name="rows", dtype="float32", shape=(ROWS, 2))
    row = TensorSpec(name="schedule_row", dtype="float32", shape=(ROWS, 2))
    base = toy.read_manifest(pristine)
    denoise = msgspec.structs.replace(base.graphs["denoise"], inputs=(row, prompt))
    return msgspec.structs.replace(
        base,
        graphs={"prompt": graph([labels], prompt), "schedule": graph([timestep, prompt], rows), "denoise": denoise},
        hoisting=msgspec.structs.replace(
            base.hoisting,
            rows_per_step="batch",
            row_width=2,
            schedule_inputs=(
                schema.ScheduleInput(name="timestep", feed="stack"),
                schema.ScheduleInput(name="prompt_0", feed="tile"),
            ),
        ),
    )


def request(labels: list[list[int]]) -> Trajectory:
    """Three calls at timesteps 1, 2, 3."""
    branches = np.array(labels, np.int64)
    timestep = np.broadcast_to(np.float32([1, 2, 3])[:, None, None], (3, *branches.shape)).copy()
    return Trajectory(
        noise=np.zeros((1, branches.shape[1], 1, 1, 1), np.float32),
        per_call={"timestep": timestep},
        constant={"class_labels": branches, "guidance_weights": np.ones(len(branches), np.float32)},
        output_row=np.zeros(4, np.float32),
    )


@pytest.mark.parametrize("labels", [[[1, 2], [0, 0]], [[3]], [[1, 2, 5]]])
def test_row_i_is_the_block_of_call_i(manifest: schema.Manifest, labels: list[list[int]]) -> None:
    backend = open_backend("onnxruntime", threads=1)
    engines = {
        name: backend.load_graph(graph_bytes(name, text)) for name, text in (("prompt", PROMPT), ("schedule", SCHEDULE))
    }
    prepared = run_prologue(backend, engines, manifest, request(labels))
    flat = 10.0 * np.float32(labels).reshape(-1, 1)
    np.testing.assert_array_equal(prepared.constant["prompt_0"].read(), flat)
    for call, timestep in enumerate((1.0, 2.0, 3.0)):
        expected = np.hstack([np.full_like(flat, timestep), timestep + flat])
        np.testing.assert_array_equal(prepared.per_call["schedule_row"].view(call).read(), expected)
    assert set(prepared.constant) == {"prompt_0"}  # class_labels has left the loop, and is not bound
    assert set(prepared.per_call) == {"schedule_row"}


def test_the_unconditional_branch_is_computed_once_a_process(manifest: schema.Manifest) -> None:
    backend, cache = open_backend("onnxruntime", threads=1), PromptCache()
    engines = {
        name: backend.load_graph(graph_bytes(name, text)) for name, text in (("prompt", PROMPT), ("schedule", SCHEDULE))
    }
    for labels, hits in (([[1, 2], [0, 0]], 0), ([[3, 4], [0, 0]], 1), ([[1, 2], [0, 0]], 3)):
        prepared = run_prologue(backend, engines, manifest, request(labels), cache)
        assert cache.hits == hits
        np.testing.assert_array_equal(prepared.constant["prompt_0"].read(), 10.0 * np.float32(labels).reshape(-1, 1))


def test_branches_are_right_when_the_cache_keeps_none_of_them(manifest: schema.Manifest) -> None:
    backend, cache = open_backend("onnxruntime", threads=1), PromptCache(max_bytes=0)
    engines = {
        name: backend.load_graph(graph_bytes(name, text)) for name, text in (("prompt", PROMPT), ("schedule", SCHEDULE))
    }
    labels = [[1, 2], [0, 3]]
    prepared = run_prologue(backend, engines, manifest, request(labels), cache)
    np.testing.assert_array_equal(prepared.constant["prompt_0"].read(), 10.0 * np.float32(labels).reshape(-1, 1))
    assert (cache.hits, cache.num_bytes) == (0, 0)
