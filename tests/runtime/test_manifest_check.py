"""What a manifest of right types is refused for: one line each, before any graph is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from latentc.manifest_check import problems
from latentc.schema import Manifest

from tests.runtime import toy

Document = dict[str, Any]


@pytest.fixture
def document(pristine: Path) -> Document:
    """A manifest with all that there is: two text encoders, an encode graph, prompt and schedule graphs, sizes."""
    made: Document = msgspec.to_builtins(toy.read_manifest(pristine))
    graphs = made["graphs"]
    row = tensor("rows", "rows", 2)
    ids = [tensor(name, "texts", 5) for name in ("input_ids", "attention_mask")]
    graphs["clip"] = graph(graphs, ids[:1], [tensor("clip_hidden", "texts", 5, 2)])
    graphs["t5"] = graph(graphs, ids, [tensor("t5_hidden", "texts", 5, 3)])
    graphs["encode"] = graph(graphs, [tensor("image", 1, 3), tensor("noise", 1, 4)], [tensor("latents", 1, 4)])
    graphs["prompt"] = graph(graphs, [tensor("t5_hidden", "b", 5, 3), tensor("grid_rows", "h")], [tensor("p", 5)])
    graphs["schedule"] = graph(graphs, [tensor("timestep", "b"), tensor("p", 5)], [row])
    feeds = [{"name": "timestep", "feed": "stack"}, {"name": "p", "feed": "tile"}]
    made["hoisting"].update(row_width=2, schedule_inputs=feeds)
    made["img2img"] = {"strength": 0.8, "rounds_up": False}
    rule = {"length": 5}
    encoders = [
        {"graph": name, "tokenizer": f"tokenizers/{name}.json", "pad_id": 0, "prompt": rule, "negative": dict(rule)}
        for name in ("clip", "t5")
    ]
    made["conditioning"] = {"kind": "text", "encoders": encoders, "zero_null": False}
    made["latent"].update(multiple=2)
    made["sizes"] = {"multiple": 4, "minimum": 4, "maximum": 14}
    record = {"sha256": "0" * 64, "num_bytes": 1}
    made["files"].update({encoder["tokenizer"]: record for encoder in encoders})
    return made


def tensor(name: str, *shape: int | str) -> Document:
    return {"name": name, "dtype": "float32", "shape": list(shape)}


def graph(graphs: Document, inputs: list[Document], outputs: list[Document]) -> Document:
    return {**graphs["decode"], "inputs": inputs, "outputs": outputs}


def first_problem(document: Document) -> str | None:
    return next(problems(msgspec.convert(document, Manifest), "parity.json"), None)


def test_a_whole_manifest_has_no_problem(document: Document) -> None:
    assert first_problem(document) is None


def renamed(old: str, new: str) -> Callable[[Document], None]:
    """Calls a text encoder and its graph by another name."""

    def change(document: Document) -> None:
        document["graphs"][new] = document["graphs"].pop(old)
        for encoder in document["conditioning"]["encoders"]:
            encoder["graph"] = new if encoder["graph"] == old else encoder["graph"]

    return change


def output(name: str) -> Callable[[Document], object]:
    """Calls the output of the encoder clip by another name."""
    return lambda d: d["graphs"]["clip"]["outputs"][0].update(name=name)


def update(*keys: str | int, **values: object) -> Callable[[Document], object]:
    """Changes fields of one record deep inside."""

    def change(document: Document) -> None:
        part: Any = document
        for key in keys:
            part = part[key]
        part.update(values)

    return change


OUT_OF_RANGE = "has a size, count or label that is out of range"
ENCODER = ("conditioning", "encoders", 0)
UNFIT = "has sizes that do not fit its latents"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (renamed("clip", "../../../../pwn"), "has a graph named '../../../../pwn'; names are"),
        (renamed("clip", "/tmp/x"), "has a graph named '/tmp/x'"),
        (renamed("clip", "a\n"), r"has a graph named 'a\n'"),
        (renamed("clip", ""), "has a graph named ''"),
        (renamed("clip", "a" * 65), "has a graph named 'aaa"),
        (renamed("clip", "decode"), "has a text encoder decode, which is the name of another graph"),
        (renamed("clip", "encode"), "has a text encoder encode, which"),
        (renamed("clip", "prompt"), "has a text encoder prompt, which"),
        (renamed("clip", "t5"), "has 2 text encoders t5"),
        (lambda d: d["graphs"].pop("clip"), "has no graph clip"),
        (lambda d: d["graphs"].pop("encode"), "has no graph encode"),
        (lambda d: d["graphs"].pop("denoise"), "has no graph denoise"),
        (lambda d: d["files"].pop("tokenizers/t5.json"), "refers to tokenizers/t5.json, which it does not list"),
        (update("conditioning", encoders=[]), "has neither labels nor a text encoder"),
        (update("graphs", "clip", inputs=[]), "has a text encoder clip with inputs none, expected attention_mask, in"),
        (update("graphs", "clip", "inputs", 0, name="ids"), "has a text encoder clip with inputs ids, expected"),
        (update("graphs", "clip", "outputs", 0, shape=[1, 5]), "has a text encoder clip whose tensors are not one row"),
        (update("graphs", "clip", "outputs", 0, shape=[]), "has a text encoder clip whose tensors are not one row"),
        *((output(name), f"has a text encoder's output {name!r}, which is the name of another tensor")
          for name in ("guidance_weights", "grid_rows", "grid_columns", "guidance", "class_labels", "timestep",
                       "input_row", "schedule_row", "history", "prediction", "t5_hidden")),
        (update("graphs", "decode", inputs=[tensor("history", 1)]), "has a graph decode with inputs history, expected"),
        (update("graphs", "decode", inputs=[tensor("z", 1)]), "has a graph decode with inputs z, expected history, o"),
        (update("graphs", "decode", outputs=[]), "has a graph decode with outputs none, expected image"),
        (update("graphs", "decode", outputs=[tensor("image", 1)] * 2), "has a graph decode with outputs image, image"),
        (update("graphs", "encode", outputs=[tensor("z", 1)]), "has a graph encode with outputs z, expected latents"),
        (update("graphs", "encode", inputs=[tensor("x", 1)]), "has a graph encode with inputs x, expected image, noi"),
        (update("graphs", "prompt", inputs=[tensor("x", 1)]), "has a graph prompt with inputs x, expected clip_hidde"),
        (update("graphs", "prompt", inputs=[tensor("guidance", 1)]), "has a graph prompt with inputs guidance"),
        (update("graphs", "schedule", outputs=[tensor("x", 1)]), "has a graph schedule with outputs x, expected rows"),
        (update("hoisting", schedule_inputs=[]), "has a graph schedule with inputs timestep, p, expected none"),
        (update("graphs", "clip", "outputs", 0, shape=["9" * 5000]), "has a tensor 'clip_hidden' of graph clip with a"),
        (update("graphs", "clip", "outputs", 0, shape=["9*" * 500 + "9"]), "has a tensor 'clip_hidden' of graph clip"),
        (update("graphs", "clip", "outputs", 0, shape=[-1]), "has a tensor 'clip_hidden' of graph clip with a size"),
        (update("hoisting", whole_parameters=0), OUT_OF_RANGE),
        (update(*ENCODER, pad_id=-1), OUT_OF_RANGE),
        (update(*ENCODER, pad_id=2**24), OUT_OF_RANGE),
        (update(*ENCODER, "prompt", length=0), OUT_OF_RANGE),
        (update(*ENCODER, "negative", length=2**40), OUT_OF_RANGE),
        (update("sizes", multiple=0), OUT_OF_RANGE),
        (update("sizes", maximum=2**24), OUT_OF_RANGE),
        (update("tables", 0, size=[8, 0]), OUT_OF_RANGE),
        (update("tables", 0, calls=0), OUT_OF_RANGE),
        (update("tables", 0, noise_draws=-1), OUT_OF_RANGE),
        (update("sizes", multiple=2), UNFIT),
        (update("sizes", multiple=8), UNFIT),
        (update("sizes", minimum=6), UNFIT),
        (update("sizes", minimum=16), UNFIT),
        (update("latent", multiple=3), "has sizes of latents and image that do not fit each other"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(document: Document, change: Callable[[Document], object], why: str) -> None:
    change(document)
    problem = first_problem(document)
    assert problem is not None
    assert problem.startswith(why)
    assert "\n" not in problem
    assert len(problem) < 600


def test_parameters_may_be_as_many_as_there_are(document: Document) -> None:
    document["hoisting"]["whole_parameters"] = 12 * 10**9
    assert first_problem(document) is None
