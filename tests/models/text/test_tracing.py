"""Each encoder as an ONNX graph: equal to torch at other batch sizes, and nothing in it that a backend lacks."""

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.export import Dim

from export.passes import clean_graph
from models.latent_diffusion import TextEncoder
from models.text.clip import ClipOutput, ClipText, clip_encoder
from models.text.gemma import GemmaText, gemma_encoder
from models.text.ldm_bert import ldm_bert_encoder
from models.text.t5 import T5_OVERFLOWS, t5_encoder
from tests.models.tracing import check_operators, graph_from_module, quiet, relative_error
from tests.pipelines.text_encoders import (
    random_clip,
    random_clip_with_projection,
    random_gemma2,
    random_ldm_bert,
    random_t5,
)
from tests.pipelines.tokenizers import (
    make_bert_tokenizer,
    make_clip_tokenizer,
    make_gemma_tokenizer,
    make_t5_tokenizer,
)

BOUND = 1e-5
KEPT = 24  # SANA's maximum sequence length, here


def clip(root: Path, outputs: Mapping[str, ClipOutput], **options: object) -> TextEncoder:
    directory = make_clip_tokenizer(root / "tokenizer")
    make = random_clip_with_projection if "projected" in outputs.values() else random_clip
    make(directory, **options).save_pretrained(root / "text_encoder")
    return clip_encoder(root, outputs)


def t5(root: Path, mask_output: str | None = None) -> TextEncoder:
    random_t5(make_t5_tokenizer(root / "tokenizer")).save_pretrained(root / "text_encoder")
    return t5_encoder(root, "text_encoder", "tokenizer", "hidden", 40, mask_output)


def gemma(root: Path) -> TextEncoder:
    directory = make_gemma_tokenizer(root / "tokenizer")
    random_gemma2(directory, sliding_window=10).save_pretrained(root / "text_encoder")
    return gemma_encoder(root, "text_encoder", "tokenizer", "hidden", "mask", KEPT, "Enhance the prompt: ")


def bert(root: Path) -> TextEncoder:
    random_ldm_bert(make_bert_tokenizer(root / "tokenizer")).save_pretrained(root / "bert")
    return ldm_bert_encoder(root, "hidden")


CASES: dict[str, Callable[[Path], TextEncoder]] = {
    "SD": lambda root: clip(root, {"hidden": "last"}),
    "SDXL's first": lambda root: clip(root, {"hidden": "penultimate"}),
    "SDXL's second": lambda root: clip(root, {"hidden": "penultimate", "pooled": "projected"}, layers=3),
    "FLUX": lambda root: clip(root, {"pooled": "pooled"}, old_eos=False),
    "T5": t5,
    "T5 with a mask": lambda root: t5(root, "mask"),
    "SANA": gemma,
    "LDM": bert,
}


@pytest.mark.parametrize("name", CASES)
def test_graph_equals_torch_at_other_sizes(name: str, tmp_path: Path) -> None:
    encoder = CASES[name](tmp_path)
    generator = torch.Generator().manual_seed(0)
    run = session(encoder, generator)
    lengths = {encoder.prompt.length, encoder.negative.length}
    for texts in (1, 5):
        for length in lengths:
            given = inputs(encoder, texts, length, generator)
            with torch.no_grad():
                expected = encoder.module(*given)
            actual = run(*given)
            assert len(actual) == len(expected) == len(encoder.outputs)
            for one, other in zip(actual, expected, strict=True):
                assert relative_error(one, other) <= BOUND


def test_weights_that_no_output_needs_are_left_out(tmp_path: Path) -> None:
    encoder = clip(tmp_path, {"hidden": "penultimate"})
    given = inputs(encoder, 2, 77, torch.Generator().manual_seed(0))
    graph = graph_from_module(encoder.module, {"input_ids": (given[0], {0: Dim("texts")})}).graph
    layers = {name.split("encoder.layers.")[1][0] for name in graph.initializers if "encoder.layers." in name}
    assert layers == {"0"}  # of two


@pytest.mark.parametrize("old_eos", [True, False])
def test_pooling_takes_the_first_end_of_text(old_eos: bool, tmp_path: Path) -> None:
    """Against transformers: padding repeats the end of text, and the last case has none at all."""
    directory = make_clip_tokenizer(tmp_path)
    model = random_clip(directory, length=6, old_eos=old_eos)
    end = model.config.vocab_size - 1
    ids = torch.tensor([[end - 1, 5, 6, end, end, end], [end - 1, end, 0, 0, 0, 0], [7, 9, 8, 9, 7, 5]])
    with torch.no_grad():
        expected = model(ids)
        last, pooled = ClipText(model, ("last", "pooled"), 6)(ids)
    assert relative_error(pooled, expected.pooler_output) <= BOUND
    assert torch.equal(pooled[0], last[0, 3])
    assert torch.equal(pooled[1], last[1, 1])


def test_gemma_sees_a_window(tmp_path: Path) -> None:
    """Against transformers, without padding: a padded query that is past the window sees nothing, in neither."""
    directory = make_gemma_tokenizer(tmp_path)
    model = random_gemma2(directory, sliding_window=10)
    ids = torch.randint(5, 300, (2, KEPT), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        hidden, _ = GemmaText(model, KEPT)(ids, torch.ones_like(ids))
        far = ids.clone()
        far[:, 1] = 17
        moved, _ = GemmaText(model, KEPT)(far, torch.ones_like(ids))
    assert relative_error(hidden, expected) <= BOUND
    assert relative_error(moved[:, -1], hidden[:, -1]) > BOUND  # by the layer that sees all


def test_known_overflows_are_found_in_the_trace(tmp_path: Path) -> None:
    encoder = t5(tmp_path)
    given = inputs(encoder, 2, 40, torch.Generator().manual_seed(0))
    graph = graph_from_module(encoder.module, {"input_ids": (given[0], {0: Dim("texts")})}).graph
    from export.precision.rules import Island

    wo, residual = (
        [node.op_type for node in graph if Island(known.pattern, known.reason).holds(node)] for known in T5_OVERFLOWS
    )
    assert wo.count("MatMul") == 2  # one for each layer
    assert residual == ["Add"] * 4  # after the attention and after the feed-forward of each layer


def session(encoder: TextEncoder, generator: torch.Generator) -> Callable[..., list[Tensor]]:
    """Traces with three texts, cleans the graph, and returns it as a function of tensors."""
    given = inputs(encoder, 3, encoder.prompt.length, generator)
    dims = {0: Dim("texts"), **({1: Dim("tokens")} if encoder.symbolic_length else {})}
    names = ("input_ids", "attention_mask")[: len(given)]
    model = graph_from_module(encoder.module, {n: (value, dims) for n, value in zip(names, given, strict=True)})
    with quiet():
        model = clean_graph(model, "onnxruntime")
    check_operators(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    onnx = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return lambda *tensors: [
        torch.from_numpy(array)
        for array in onnx.run(None, {n: tensor.numpy() for n, tensor in zip(names, tensors, strict=True)})
    ]


def inputs(encoder: TextEncoder, texts: int, length: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Ids of ordinary tokens, with an end of text at the largest id and padding after it."""
    largest = encoder.tokenizer.get_vocab_size() - 1
    ids = torch.randint(5, 300, (texts, length), generator=generator)
    ends = torch.randint(1, length, (texts, 1), generator=generator)
    position = torch.arange(length)[None]
    ids = torch.where(position < ends, ids, largest if encoder.name != "bert" else 0)
    return (ids, (position <= ends).long()) if encoder.takes_mask else (ids,)
