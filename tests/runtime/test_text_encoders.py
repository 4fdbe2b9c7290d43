"""Text encoder graphs before the loop: where results go, what is zero, and what is not computed again."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.parser
import pytest
from latentc import schema
from latentc.backends import open_backend
from latentc.backends.protocol import Engine
from latentc.bundle import GraphBytes
from latentc.conditioning import TextBatch
from latentc.errors import BundleError
from latentc.prologue import run_prologue
from latentc.prompt_cache import PromptCache
from latentc.schema import TensorSpec
from latentc.trajectory import Trajectory

from tests.runtime import toy

# hidden = 10 · id where there is a token; pooled is its sum
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
text (int64[texts, tokens] input_ids, int64[texts, tokens] attention_mask)
=> (float[texts, tokens] hidden, float[texts] pooled)
<float ten = {10.0}, int64[1] axis = {1}>
{ kept = Mul(input_ids, attention_mask) real = Cast<to = 1>(kept) hidden = Mul(real, ten)
  pooled = ReduceSum<keepdims = 0>(hidden, axis) }"""
Places = tuple[tuple[tuple[int, int], ...], ...]


class Counted:
    """An engine that counts the texts that it encodes."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.texts, self._given = engine, 0, 0

    def bind(self, name, buffer) -> None:
        self._given = buffer.shape[0]
        self.engine.bind(name, buffer)

    def run(self) -> None:
        self.texts += self._given
        self.engine.run()


@pytest.fixture
def encoder() -> Counted:
    model = memoryview(onnx.parser.parse_model(TEXT).SerializeToString())
    return Counted(
        open_backend("onnxruntime", threads=1).load_graph(GraphBytes("text", model, "none", memoryview(b"")))
    )


@pytest.fixture
def manifest(pristine: Path) -> schema.Manifest:
    """The toy's manifest with a text encoder, and a loop that reads what it gives."""
    base = toy.read_manifest(pristine)
    ids = [TensorSpec(name=name, dtype="int64", shape=("texts", "tokens")) for name in ("input_ids", "attention_mask")]
    outputs = (
        TensorSpec(name="hidden", dtype="float32", shape=("texts", "tokens")),
        TensorSpec(name="pooled", dtype="float32", shape=("texts",)),
    )
    replace = msgspec.structs.replace
    text = replace(base.graphs["denoise"], file="graphs/text.onnx", inputs=tuple(ids), outputs=outputs)
    return replace(base, graphs={"text": text, "denoise": replace(base.graphs["denoise"], inputs=outputs)})


def batch(ids: list[list[int]], places: Places) -> TextBatch:
    """Token 0 is padding."""
    array = np.array(ids, np.int64)
    return TextBatch(graph="text", input_ids=array, attention_mask=(array > 0).astype(np.int64), places=places)


def run(
    manifest: schema.Manifest,
    encoder: Counted,
    batches: tuple[TextBatch, ...],
    shape: tuple[int, int],
    cache: PromptCache | None = None,
) -> dict[str, np.ndarray]:
    """What the loop is given of the texts, for [branches, images]."""
    trajectory = Trajectory(
        noise=np.zeros((1, shape[1], 1, 1, 1), np.float32),
        per_call={},
        constant={"guidance_weights": np.ones(shape[0], np.float32)},
        output_row=np.zeros(2, np.float32),
        texts=batches,
    )
    prepared = run_prologue(open_backend("onnxruntime", threads=1), {"text": encoder}, manifest, trajectory, cache)
    return {name: buffer.read() for name, buffer in prepared.constant.items()}


def test_a_text_goes_to_every_place_that_is_its_own(manifest: schema.Manifest, encoder: Counted) -> None:
    given = batch([[1, 2, 0], [3, 0, 0]], (((0, 0), (0, 2)), ((0, 1), (1, 0), (1, 1), (1, 2))))
    got = run(manifest, encoder, (given,), (2, 3))
    expected = np.float32([[[10, 20, 0], [30, 0, 0], [10, 20, 0]], [[30, 0, 0]] * 3])
    np.testing.assert_array_equal(got["hidden"], expected)
    np.testing.assert_array_equal(got["pooled"], expected.sum(-1))
    assert got["hidden"].dtype == np.float32
    assert encoder.texts == 2


def test_a_branch_without_texts_is_zero(manifest: schema.Manifest, encoder: Counted) -> None:
    got = run(manifest, encoder, (batch([[1, 2, 0]], (((0, 0), (0, 1)),)),), (2, 2))
    np.testing.assert_array_equal(got["hidden"], [[[10, 20, 0]] * 2, [[0, 0, 0]] * 2])
    np.testing.assert_array_equal(got["pooled"], [[30, 30], [0, 0]])


def test_two_rules_of_one_length_share_an_output(manifest: schema.Manifest, encoder: Counted) -> None:
    positive, negative = batch([[1, 2, 0]], (((0, 0),),)), batch([[7, 0, 0]], (((1, 0),),))
    got = run(manifest, encoder, (positive, negative), (2, 1))
    np.testing.assert_array_equal(got["hidden"], [[[10, 20, 0]], [[70, 0, 0]]])


def test_two_lengths_are_one_line_where_the_output_shows_them(manifest: schema.Manifest, encoder: Counted) -> None:
    batches = (batch([[1, 2, 0]], (((0, 0),),)), batch([[7, 8]], (((1, 0),),)))
    with pytest.raises(
        BundleError, match=r"^graph text makes hidden \[3\] of prompts and \[2\] of negative prompts; e"
    ):
        run(manifest, encoder, batches, (2, 1))


def test_texts_of_an_earlier_request_are_not_encoded_again(manifest: schema.Manifest, encoder: Counted) -> None:
    cache = PromptCache()
    for ids, hits, texts in (
        ([[1, 2, 0], [9, 0, 0]], 0, 2),
        ([[3, 2, 0], [9, 0, 0]], 1, 3),
        ([[9, 0, 0], [1, 2, 0]], 3, 3),
        ([[9, 0], [1, 2]], 3, 5),  # other lengths are other texts
    ):
        got = run(manifest, encoder, (batch(ids, (((0, 0),), ((1, 0),))),), (2, 1), cache)
        np.testing.assert_array_equal(got["hidden"], 10 * np.float32(ids)[:, None])
        assert (cache.hits, encoder.texts) == (hits, texts)


@pytest.mark.parametrize("max_bytes", [0, 16, 40])
def test_results_are_right_when_the_cache_is_too_small_for_one_call(
    manifest: schema.Manifest, encoder: Counted, max_bytes: int
) -> None:
    cache = PromptCache(max_bytes)  # a text takes 16 bytes
    for begin in (1, 3, 1):
        ids = [[begin + i, 2, 0] for i in range(5)]
        got = run(manifest, encoder, (batch(ids, tuple(((0, i),) for i in range(5))),), (1, 5), cache)
        np.testing.assert_array_equal(got["hidden"][0], 10 * np.float32(ids))
        assert cache.num_bytes <= max_bytes
