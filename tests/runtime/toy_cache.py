"""A toy bundle whose steps can be cached: what the middle adds is the bias of label and time.

denoise          body = Σ w · M x;  prediction = body + bias;  residual_0 = prediction - body
denoise_cached   body = Σ w · M x;  prediction = body + residual_0, from the last full step
"""

from pathlib import Path

import msgspec
import numpy as np
import onnx
from latentc import schema
from latentc.parity import psnr_db
from latentc.trajectory import noise_from_seed
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from tests.runtime import toy

CALLS = {  # by level: (solver, steps) -> the calls that are cached
    "slight": {("plain", 2): (1,), ("plain", 4): (2,), ("heun", 3): (1, 3), ("sde", 3): ()},
    "strong": {("plain", 2): (1,), ("plain", 4): (1, 2, 3), ("heun", 3): (1, 2, 3, 4), ("sde", 3): (1, 2)},
}


def add_step_cache(root: Path) -> Path:
    """Gives a toy bundle residuals, the graph denoise_cached, cached calls of every table, and their figures."""
    full = onnx.load(root / "graphs/denoise.onnx", load_external_data=False)
    full.graph.node.append(helper.make_node("Sub", ["prediction", "body"], ["residual_0"]))
    dims = ("batch", toy.CHANNELS, toy.SIZE, toy.SIZE)
    value = helper.make_tensor_value_info("residual_0", TensorProto.FLOAT, dims)
    full.graph.output.append(value)
    cached = onnx.ModelProto()
    cached.CopyFrom(full)
    names = ("row5", "scaled", "x", "mixed", "weight", "body")
    nodes = [node for node in full.graph.node if node.output[0] in names]
    nodes.append(helper.make_node("Add", ["body", "residual_0"], ["prediction"]))
    read = {name for node in nodes for name in node.input}
    inputs = [item for item in full.graph.input if item.name in read] + [value]
    weights = [item for item in full.graph.initializer if item.name in read]
    cached.graph.CopyFrom(helper.make_graph(nodes, "cached", inputs, [full.graph.output[0]], weights))
    onnx.save(full, root / "graphs/denoise.onnx")
    onnx.save(cached, root / "graphs/denoise_cached.onnx")

    manifest = toy.read_manifest(root)
    residual = schema.TensorSpec(name="residual_0", dtype="float32", shape=dims)
    denoise = manifest.graphs["denoise"]
    denoise = msgspec.structs.replace(denoise, outputs=(*denoise.outputs, residual))
    specs = tuple(spec for spec in denoise.inputs if spec.name in read)
    reused = msgspec.structs.replace(
        denoise, file="graphs/denoise_cached.onnx", inputs=(*specs, residual), outputs=denoise.outputs[:1], flops=400
    )
    pictures = _add_parity(root)
    levels = {level: max(0.5, value - 1.0) for level, value in pictures.items()}
    tables = tuple(
        msgspec.structs.replace(
            table,
            cached={
                level: schema.CachedCalls(calls=calls[table.solver, table.steps], psnr_db=pictures[level])
                for level, calls in CALLS.items()
            },
        )
        for table in manifest.tables
    )
    cache = schema.StepCache(first_block=1, end_block=2, blocks=3, residuals=("residual_0",), levels=levels)
    graphs = {**manifest.graphs, "denoise": denoise, "denoise_cached": reused}
    toy.seal(root, msgspec.structs.replace(manifest, graphs=graphs, tables=tables, step_cache=cache))
    return root


def toy_picture(
    solver: str, steps: int, noise: toy.Floats, labels: tuple[int, ...], cfg_scale: float, cached: tuple[int, ...]
) -> toy.Floats:
    """The loop in numpy, where a cached call adds the bias of the last full one."""
    table = toy.table_of(solver, steps)
    last = 0
    seen = table.timesteps.copy()
    for call in range(len(seen)):
        last = last if call in cached else call
        seen[call] = table.timesteps[last]
    stale = toy.ToyTable(table.input_rows, table.output_row, seen, table.noise_draws)
    return toy.toy_trajectory(toy.toy_model(), stale, noise, labels, cfg_scale)


def _add_parity(root: Path) -> dict[str, float]:
    """The figures of the cached graph and of both levels; returns the PSNR of each level at the defaults."""
    references = load_file(root / "parity.safetensors")
    parity = msgspec.json.decode((root / "parity.json").read_bytes(), type=schema.Parity)
    model = toy.toy_model()
    inputs = {name: references[f"denoise/input/{name}"] for name in ("history", "input_row", "guidance_weights")}
    x = np.tensordot(inputs["input_row"], inputs["history"], 1).astype(np.float32)
    body = inputs["guidance_weights"].sum() * np.einsum("dc,bchw->bdhw", model.mix, x)
    residual = (references["denoise/output/prediction"] - body).astype(np.float32)
    noise = noise_from_seed(parity.seed, (2, toy.CHANNELS, toy.SIZE, toy.SIZE), 0).draws
    full = toy_picture("plain", 4, noise, parity.labels, parity.cfg_scale, ())
    references |= {f"denoise_cached/input/{name}": values for name, values in inputs.items()}
    references |= {
        "denoise/output/residual_0": residual,
        "denoise_cached/input/residual_0": residual,
        "denoise_cached/output/prediction": references["denoise/output/prediction"],
        "trajectory/full_steps": full,
    }
    save_file(references, root / "parity.safetensors")
    pictures = {
        level: psnr_db(toy_picture("plain", 4, noise, parity.labels, parity.cfg_scale, calls["plain", 4]), full)
        for level, calls in CALLS.items()
    }
    figures = [(name, "relative_l2", 1e-7, 1e-5) for name in ("denoise/residual_0", "denoise_cached/prediction")]
    figures += [
        (f"trajectory/{name}@{level}", "psnr_db", value, max(0.5, value - 1.0))
        for level, value in pictures.items()
        for name in ("image", "full_steps")
    ]
    made = tuple(
        schema.Figure(tensor=tensor, measure=measure, value=value, bound=bound, against="numpy")  # type: ignore[arg-type]
        for tensor, measure, value, bound in figures
    )
    data = msgspec.json.encode(msgspec.structs.replace(parity, figures=(*parity.figures, *made)))
    (root / "parity.json").write_bytes(data)
    return pictures
