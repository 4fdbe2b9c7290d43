"""Toy bundles that can do more: draw over an image, or draw from text."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.parser
from latentc import schema
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.runtime import toy

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
# latents = the mean of each square of pixels and channels, plus a little noise
ENCODE = f"""{HEAD} encode (float[1, 3, 8, 8] image, float[1, 4, 4, 4] noise) => (float[1, 4, 4, 4] latents)
<int64[1] channels = {{1}}, float little = {{0.3}}>
{{ gray = ReduceMean<axes = [1]>(image) small = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(gray)
  quiet = Mul(noise, little) latents = Add(quiet, small) }}"""
# A text's number is its first token: "cat" is 0, "dog" is 1, and "" is </s>, the toy's null label.
TEXT = f"""{HEAD} text (int64[texts, tokens] input_ids) => (int64[texts] text_label)
<int64 first = {{0}}> {{ text_label = Gather<axis = 1>(input_ids, first) }}"""
WORDS = {"cat": 0, "dog": 1, "fruit": 2, "</s>": toy.NULL_LABEL}
SKIPPED = {1: (2, 2), 2: (1, 0)}  # of the table sde 3: calls and draws over an image


def toy_encode(image: toy.Floats, noise: toy.Floats) -> toy.Floats:
    """What ENCODE does, in numpy."""
    gray = image.mean(axis=1, keepdims=True)
    return (np.float32(0.3) * noise + gray.reshape(1, 1, 4, 2, 4, 2).mean(axis=(3, 5))).astype(np.float32)


def table_over_image(skipped: int) -> toy.ToyTable:
    """The table of the solver sde, 3 steps, for an image that stands for `skipped` of them."""
    calls, draws = SKIPPED[skipped]
    return toy.toy_table(calls, draws, seed=100 + skipped, over_image=True)


def add_img2img(root: Path) -> Path:
    """Gives a toy bundle the graph encode, and the solver sde tables for an initial image."""
    manifest = toy.read_manifest(root)
    table = next(table for table in manifest.tables if table.solver == "sde")
    arrays = load_file(root / table.file)
    for skipped in SKIPPED:
        own = table_over_image(skipped)
        arrays[f"img2img/{skipped}/counts"] = np.array([len(own.timesteps), own.noise_draws], np.int64)
        for name in ("input_rows", "output_row", "timesteps"):
            arrays[f"img2img/{skipped}/{name}"] = getattr(own, name)
    save_file(arrays, root / table.file)
    latents = (1, toy.CHANNELS, toy.SIZE, toy.SIZE)
    image = (1, 3, toy.SIZE * toy.SCALE, toy.SIZE * toy.SCALE)
    inputs = [schema.TensorSpec(name=n, dtype="float32", shape=s) for n, s in (("image", image), ("noise", latents))]
    graphs = dict(manifest.graphs)
    output = schema.TensorSpec(name="latents", dtype="float32", shape=latents)
    graphs["encode"] = _add_graph(root, manifest, "encode", ENCODE, inputs, output)
    tables = [msgspec.structs.replace(table, img2img=table.solver == "sde") for table in manifest.tables]
    img2img = schema.Img2Img(strength=0.7, rounds_up=False)
    toy.seal(root, msgspec.structs.replace(manifest, graphs=graphs, tables=tuple(tables), img2img=img2img))
    return root


def make_text(root: Path) -> Path:
    """Makes a toy bundle draw from text: labels come out of a text encoder's graph."""
    manifest = toy.read_manifest(root)
    model = onnx.load(root / "graphs/denoise.onnx", load_external_data=False)
    for node in model.graph.node:
        node.input[:] = ["text_label" if name == "class_labels" else name for name in node.input]
    next(value for value in model.graph.input if value.name == "class_labels").name = "text_label"
    onnx.save(model, root / "graphs/denoise.onnx")
    denoise = manifest.graphs["denoise"]
    inputs = [
        msgspec.structs.replace(spec, name="text_label") if spec.name == "class_labels" else spec
        for spec in denoise.inputs
    ]
    graphs = {**manifest.graphs, "denoise": msgspec.structs.replace(denoise, inputs=tuple(inputs))}
    ids = schema.TensorSpec(name="input_ids", dtype="int64", shape=("texts", "tokens"))
    output = schema.TensorSpec(name="text_label", dtype="int64", shape=("texts",))
    graphs["text"] = _add_graph(root, manifest, "text", TEXT, [ids], output)
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="fruit"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    (root / "tokenizers").mkdir()
    (root / "tokenizers/text.json").write_text(tokenizer.to_str())
    rule = schema.TextRule(length=4)
    encoder = schema.TextEncoder(graph="text", tokenizer="tokenizers/text.json", pad_id=3, prompt=rule, negative=rule)
    conditioning = schema.TextConditioning(encoders=(encoder,), zero_null=False)
    toy.seal(root, msgspec.structs.replace(manifest, graphs=graphs, conditioning=conditioning))
    return root


def _add_graph(
    root: Path,
    manifest: schema.Manifest,
    name: str,
    text: str,
    inputs: list[schema.TensorSpec],
    output: schema.TensorSpec,
) -> schema.Graph:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    onnx.save(model, root / f"graphs/{name}.onnx")
    (root / f"graphs/{name}.weights").touch()
    return msgspec.structs.replace(
        manifest.graphs["decode"],
        file=f"graphs/{name}.onnx",
        weights=f"graphs/{name}.weights",
        inputs=tuple(inputs),
        outputs=(output,),
    )


def free_sizes(root: Path) -> Path:
    """Makes a toy bundle draw every size from 4 to 48, in steps of a latent: 2 pixels."""
    manifest = toy.read_manifest(root)
    grid = {toy.SIZE: ("grid_height", "grid_width"), toy.SIZE * toy.SCALE: ("2*grid_height", "2*grid_width")}
    graphs = {}
    for name, graph in manifest.graphs.items():
        model = onnx.load(root / graph.file, load_external_data=False)
        for value in (*model.graph.input, *model.graph.output):
            dims = value.type.tensor_type.shape.dim
            if len(dims) >= 4:
                for dim, symbol in zip(dims[-2:], grid[dims[-1].dim_value], strict=True):
                    dim.dim_param = symbol
        onnx.save(model, root / graph.file)
        specs = {
            side: tuple(
                msgspec.structs.replace(spec, shape=(*spec.shape[:-2], *grid[spec.shape[-1]]))
                if len(spec.shape) >= 4
                else spec
                for spec in getattr(graph, side)
            )
            for side in ("inputs", "outputs")
        }
        graphs[name] = msgspec.structs.replace(graph, **specs)
    sizes = schema.SizeRange(multiple=toy.SCALE, minimum=4, maximum=48)
    toy.seal(root, msgspec.structs.replace(manifest, graphs=graphs, sizes=sizes))
    return root
