"""A small bundle whose every number is known: ONNX graphs beside the same arithmetic in numpy.

The denoiser is linear: sum_k w_k (M x + E[label_k] + t_k v) with a channel mixing M, a label table E and
a time direction v. The decoder mixes channels into three, doubles the size, and clips to [0, 1].
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from latentc import schema
from latentc.request import Request
from latentc.table import SolverTable
from latentc.text import Tokenizers
from latentc.trajectory import Noise, Trajectory, trajectory_of
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

CHANNELS, SIZE, SCALE = 4, 4, 2
LABELS = {"cat": 0, "dog": 1, "food-fruit": 2, "fruit": 2}
NULL_LABEL = 3
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ToyModel:
    """The weights of the toy denoiser and decoder."""

    mix: Floats  # [C, C]
    embed: Floats  # [labels + 1, C]
    time: Floats  # [C]
    paint: Floats  # [3, C]

    def predict(self, x: Floats, timestep: Floats, labels: npt.NDArray[np.int64], weights: Floats) -> Floats:
        """x [B, C, H, W], timestep and labels [K, B], weights [K] -> [B, C, H, W]."""
        total = np.zeros_like(x)
        for k, weight in enumerate(weights):
            bias = self.embed[labels[k]] + timestep[k][:, None] * self.time  # [B, C]
            total += weight * (np.einsum("dc,bchw->bdhw", self.mix, x) + bias[:, :, None, None])
        return total

    def decode(self, z: Floats) -> Floats:
        """z [B, C, H, W] -> [B, 3, 2H, 2W] in [0, 1]."""
        small = np.einsum("dc,bchw->bdhw", self.paint, z) + np.float32(0.5)
        return np.clip(small.repeat(SCALE, axis=2).repeat(SCALE, axis=3), 0, 1).astype(np.float32)


def toy_model() -> ToyModel:
    """The same weights every time."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Floats:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    return ToyModel(
        weights(CHANNELS, CHANNELS), weights(len(LABELS), CHANNELS), weights(CHANNELS), weights(3, CHANNELS)
    )


@dataclass(frozen=True)
class ToyTable:
    """One solver table, random but causal."""

    input_rows: Floats
    output_row: Floats
    timesteps: Floats
    noise_draws: int


def toy_table(calls: int, noise_draws: int, seed: int, over_image: bool = False) -> ToyTable:
    """Random rows that use only what earlier calls made; `over_image` adds the slot of the initial image."""
    rng = np.random.default_rng(seed)
    slots = 1 + calls + noise_draws + over_image
    rows = rng.normal(0, 0.5, (calls, slots)).astype(np.float32)
    for i in range(calls):
        rows[i, 1 + i : 1 + calls] = 0
    output = rng.normal(0, 0.5, slots).astype(np.float32)
    return ToyTable(rows, output, np.linspace(0.9, 0.1, calls, dtype=np.float32), noise_draws)


def toy_trajectory(
    model: ToyModel,
    table: ToyTable,
    noise: Floats,
    labels: tuple[int, ...],
    cfg_scale: float,
    latents: Floats | None = None,
) -> Floats:
    """The picture in plain numpy: the loop of the design, without an engine.

    `latents` [1, C, H, W] are those of an initial image, for all pictures.
    """
    calls = len(table.timesteps)
    guided = cfg_scale > 1
    branches = np.array([labels, [NULL_LABEL] * len(labels)] if guided else [labels], np.int64)
    weights = np.array([cfg_scale, 1 - cfg_scale] if guided else [1], np.float32)
    outputs: list[Floats] = []
    for i in range(calls):
        x = table.input_rows[i, 0] * noise[0]
        for k, output in enumerate(outputs):
            x = x + table.input_rows[i, 1 + k] * output
        for k in range(table.noise_draws):
            x = x + table.input_rows[i, 1 + calls + k] * noise[1 + k]
        if latents is not None:
            x = x + table.input_rows[i, -1] * latents
        outputs.append(model.predict(x, np.full(branches.shape, table.timesteps[i]), branches, weights))
    history = np.concatenate([noise[:1], np.stack(outputs), noise[1:]])
    if latents is not None:
        history = np.concatenate([history, np.broadcast_to(latents, history[:1].shape)])
    return model.decode(np.tensordot(table.output_row, history, 1).astype(np.float32))


def trajectory(table: SolverTable, noise: Noise, labels: tuple[int, ...], cfg_scale: float) -> Trajectory:
    """What the runtime makes of a request for the toy."""
    record = schema.Table(solver="any", steps=1, calls=table.calls, noise_draws=table.noise_draws, file="")
    request = Request(table=record, cfg_scale=cfg_scale, width=SIZE, height=SIZE, labels=labels)
    conditioning = schema.LabelConditioning(labels=LABELS, null_label=NULL_LABEL)
    return trajectory_of(conditioning, 1, request, table, noise, Tokenizers({}))


def write_bundle(root: Path, name: str = "toy") -> Path:
    """Writes the toy bundle: three solvers (plain, more calls than steps, with injected noise)."""
    (root / "graphs").mkdir(parents=True)
    (root / "tables").mkdir()
    model = toy_model()
    _save(_denoise_graph(model), root / "graphs", "denoise")
    _save(_decode_graph(model), root / "graphs", "decode")
    tables = []
    for solver, steps, calls, draws in TABLES:
        table = toy_table(calls, draws, seed=steps)
        file = f"tables/{solver}-{steps}.safetensors"
        arrays = {"input_rows": table.input_rows, "output_row": table.output_row, "timesteps": table.timesteps}
        save_file(arrays, root / file)
        tables.append(schema.Table(solver=solver, steps=steps, calls=calls, noise_draws=draws, file=file))
    _write_parity(root, model)
    latent = [("batch", "batch"), ("channels", CHANNELS), ("height", SIZE), ("width", SIZE)]
    history = schema.TensorSpec(name="history", dtype="float32", shape=("slots", *(dim for _, dim in latent)))
    per_branch = ("guidance_branches", "batch")
    manifest = schema.Manifest(
        schema_version=schema.SCHEMA_VERSION,
        name=name,
        family="dit",
        pipeline="DiTPipeline",
        precision="fp32",
        target="onnxruntime",
        latent=schema.Latent(channels=CHANNELS, height=SIZE, width=SIZE),
        image=schema.Image(channels=3, height=SIZE * SCALE, width=SIZE * SCALE),
        guided=True,
        sizes=None,
        img2img=None,
        conditioning=schema.LabelConditioning(labels=LABELS, null_label=NULL_LABEL),
        graphs={
            "denoise": _graph(
                "denoise",
                "step",
                [
                    history,
                    schema.TensorSpec(name="input_row", dtype="float32", shape=("slots",)),
                    schema.TensorSpec(name="timestep", dtype="float32", shape=per_branch),
                    schema.TensorSpec(name="class_labels", dtype="int64", shape=per_branch),
                    schema.TensorSpec(name="guidance_weights", dtype="float32", shape=("guidance_branches",)),
                ],
                schema.TensorSpec(name="prediction", dtype="float32", shape=tuple(dim for _, dim in latent)),
            ),
            "decode": _graph(
                "decode",
                "request",
                [history, schema.TensorSpec(name="output_row", dtype="float32", shape=("slots",))],
                schema.TensorSpec(name="image", dtype="float32", shape=("batch", 3, SIZE * SCALE, SIZE * SCALE)),
            ),
        },
        hoisting=schema.Hoisting(
            rows_per_step="one",
            row_width=0,
            schedule_inputs=(),
            whole_nodes=10,
            whole_parameters=40,
            whole_weight_bytes=160,
            whole_flops=1000,
        ),
        solvers={
            solver: schema.Solver(scheduler=f"{solver}Scheduler", settings={}) for solver in ("plain", "heun", "sde")
        },
        tables=tuple(tables),
        defaults=schema.Defaults(solver="plain", steps=4, cfg_scale=2.0),
        files={},
        provenance=schema.Provenance(source="toy", source_sha256={}, versions={}),
    )
    seal(root, manifest)
    return root


TABLES = [("plain", 2, 2, 0), ("plain", 4, 4, 0), ("heun", 3, 5, 0), ("sde", 3, 3, 3)]


def table_of(solver: str, steps: int) -> ToyTable:
    """The table that the toy bundle holds for this solver and step count."""
    calls, draws = next((c, d) for s, n, c, d in TABLES if (s, n) == (solver, steps))
    return toy_table(calls, draws, seed=steps)


def seal(root: Path, manifest: schema.Manifest) -> None:
    """Hashes what is there, and writes the manifest and its hash: what a tamperer who rehashes does too."""
    files = {}
    for path in sorted(root.rglob("*")):
        file = path.relative_to(root).as_posix()
        if path.is_file() and not file.startswith(("manifest.json", "engines/")):
            data = path.read_bytes()
            files[file] = schema.FileRecord(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
    seal_bytes(root, msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))


def seal_bytes(root: Path, manifest: bytes) -> None:
    """Writes the manifest as it is, with its hash beside it."""
    (root / "manifest.json").write_bytes(manifest)
    (root / "manifest.json.sha256").write_text(f"{hashlib.sha256(manifest).hexdigest()}  manifest.json\n")


def read_manifest(root: Path) -> schema.Manifest:
    """The manifest, unchecked."""
    return msgspec.json.decode((root / "manifest.json").read_bytes(), type=schema.Manifest)


def _graph(
    name: str, runs: schema.RunsOnce, inputs: list[schema.TensorSpec], output: schema.TensorSpec
) -> schema.Graph:
    return schema.Graph(
        file=f"graphs/{name}.onnx",
        weights=f"graphs/{name}.weights",
        inputs=tuple(inputs),
        outputs=(output,),
        runs_once_per=runs,
        nodes=10,
        parameters=40,
        weight_bytes=160,
        int8_bytes=0,
        flops=1000,
        activation_bytes=2000,
    )


def _write_parity(root: Path, model: ToyModel) -> None:
    rng = np.random.default_rng(9)
    table, labels, steps, cfg = table_of("sde", 3), (0, 2), 3, 2.0
    noise = rng.normal(size=(1 + table.noise_draws, 2, CHANNELS, SIZE, SIZE)).astype(np.float32)
    history = rng.normal(size=(5, 2, CHANNELS, SIZE, SIZE)).astype(np.float32)
    row = rng.normal(size=5).astype(np.float32)
    x = np.tensordot(row, history, 1).astype(np.float32)
    timestep = np.full((2, 2), 0.3, np.float32)
    branches = np.array([labels, [NULL_LABEL] * 2], np.int64)
    weights = np.array([cfg, 1 - cfg], np.float32)
    save_file(
        {
            "denoise/input/history": history,
            "denoise/input/input_row": row,
            "denoise/input/timestep": timestep,
            "denoise/input/class_labels": branches,
            "denoise/input/guidance_weights": weights,
            "denoise/output/prediction": model.predict(x, timestep, branches, weights),
            "decode/input/history": history,
            "decode/input/output_row": row,
            "decode/output/image": model.decode(x),
            "trajectory/noise": noise,
            "trajectory/image": toy_trajectory(model, table, noise, labels, cfg),
        },
        root / "parity.safetensors",
    )
    figures = [
        ("denoise/prediction", "relative_l2", 1e-7, 1e-5),
        ("decode/image", "relative_l2", 1e-7, 1e-5),
        ("trajectory/image", "psnr_db", 120.0, 60.0),
    ]
    parity = schema.Parity(
        seed=9, steps=steps, solver="sde", cfg_scale=cfg, guidance=None, labels=labels, prompts=(),
        negative_prompts=None, width=SIZE * SCALE, height=SIZE * SCALE, skipped=None, references="parity.safetensors",
        figures=tuple(
            schema.Figure(tensor=tensor, measure=measure, value=value, bound=bound, against="numpy")  # type: ignore[arg-type]
            for tensor, measure, value, bound in figures
        ),
        phases=(),
    )  # fmt: skip
    (root / "parity.json").write_bytes(msgspec.json.encode(parity))


def _save(model: onnx.ModelProto, folder: Path, name: str) -> None:
    onnx.checker.check_model(model)
    # Shape constants stay inline: ONNX's shape inference does not read external data.
    onnx.save(model, folder / f"{name}.onnx", save_as_external_data=True, location=f"{name}.weights", size_threshold=80)


def _value(name: str, dtype: int, *dims: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, dims)


def _weights(**arrays: npt.NDArray[np.generic]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]


def _combine(row: str) -> list[onnx.NodeProto]:
    """x = sum_k row[k] * history[k]"""
    return [
        helper.make_node("Reshape", [row, "column"], ["row5"]),
        helper.make_node("Mul", ["history", "row5"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled", "axis0"], ["x"], keepdims=0),
    ]


def _denoise_graph(model: ToyModel) -> onnx.ModelProto:
    nodes = [
        *_combine("input_row"),
        helper.make_node("Conv", ["x", "mix"], ["mixed"]),
        helper.make_node("ReduceSum", ["guidance_weights", "axis0"], ["weight"], keepdims=0),
        helper.make_node("Mul", ["mixed", "weight"], ["body"]),
        helper.make_node("Gather", ["embed", "class_labels"], ["label"]),  # [K, B, C]
        helper.make_node("Unsqueeze", ["timestep", "axis2"], ["t3"]),
        helper.make_node("Mul", ["t3", "time"], ["clock"]),
        helper.make_node("Add", ["label", "clock"], ["bias"]),
        helper.make_node("Reshape", ["guidance_weights", "column3"], ["w3"]),
        helper.make_node("Mul", ["bias", "w3"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axis0"], ["summed"], keepdims=0),  # [B, C]
        helper.make_node("Unsqueeze", ["summed", "axes23"], ["summed4"]),
        helper.make_node("Add", ["body", "summed4"], ["prediction"]),
    ]
    weights = _weights(
        mix=model.mix[:, :, None, None], embed=model.embed, time=model.time,
        column=np.array([-1, 1, 1, 1, 1]), column3=np.array([-1, 1, 1]), axis0=np.array([0]),
        axis2=np.array([2]), axes23=np.array([2, 3]),
    )  # fmt: skip
    inputs = [
        _value("history", TensorProto.FLOAT, "slots", "batch", CHANNELS, SIZE, SIZE),
        _value("input_row", TensorProto.FLOAT, "slots"),
        _value("timestep", TensorProto.FLOAT, "guidance_branches", "batch"),
        _value("class_labels", TensorProto.INT64, "guidance_branches", "batch"),
        _value("guidance_weights", TensorProto.FLOAT, "guidance_branches"),
    ]
    output = _value("prediction", TensorProto.FLOAT, "batch", CHANNELS, SIZE, SIZE)
    return _model(nodes, inputs, output, weights)


def _decode_graph(model: ToyModel) -> onnx.ModelProto:
    nodes = [
        *_combine("output_row"),
        helper.make_node("Conv", ["x", "paint"], ["painted"]),
        helper.make_node("Add", ["painted", "half"], ["small"]),
        helper.make_node("Resize", ["small", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Clip", ["large", "zero", "one"], ["image"]),
    ]
    weights = _weights(
        paint=model.paint[:, :, None, None], half=np.float32(0.5).reshape(1),
        scales=np.array([1, 1, SCALE, SCALE], np.float32), zero=np.array(0, np.float32), one=np.array(1, np.float32),
        column=np.array([-1, 1, 1, 1, 1]), axis0=np.array([0]),
    )  # fmt: skip
    inputs = [
        _value("history", TensorProto.FLOAT, "slots", "batch", CHANNELS, SIZE, SIZE),
        _value("output_row", TensorProto.FLOAT, "slots"),
    ]
    output = _value("image", TensorProto.FLOAT, "batch", 3, SIZE * SCALE, SIZE * SCALE)
    return _model(nodes, inputs, output, weights)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "toy", inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
