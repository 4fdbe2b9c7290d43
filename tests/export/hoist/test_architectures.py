"""Five architectures: the parts compose to the whole, and what leaves is what should."""

import pytest

from export.hoist import Partition
from tests.export.hoist.architectures import Traced
from tests.export.hoist.compose import largest_error

Architecture = tuple[str, Traced, Partition]
MODULATION = (
    ".norm1.linear", ".norm1_context.linear", ".norm.linear", "norm_out.linear", "proj_out_1", "time_emb_proj",
    "adaln_single", "time_text_embed", "timestep_embedder", "class_embedder",
)  # fmt: skip
ROWS_PER_STEP = {"dit_step": "batch*guidance_branches", "flux": "batch", "sd3": "batch", "pixart": "1", "unet": "1"}
# Of FLUX the modulation is 342 D² of 1254 D² (27 %); the rest are embedders, which weigh more in a tiny model.
SHARE_THAT_LEAVES = {"dit_step": 0.33, "flux": 0.27, "sd3": 0.33, "pixart": 0.2, "unet": 0.05}


def test_parts_compose_to_the_whole(architecture: Architecture) -> None:
    _, traced, parts = architecture
    other_dims = {symbol: size + 1 for symbol, size in traced.dims.items()}  # not those it was cut for
    assert largest_error(parts, traced.inputs, other_dims) <= 1e-6


def test_no_modulation_weight_stays_in_the_loop(architecture: Architecture) -> None:
    name, _, parts = architecture
    kept = set(parts.denoise.graph.initializers)
    assert not [weight for weight in kept if any(part in weight for part in MODULATION) and weight.endswith("weight")]
    assert parts.schedule is not None
    assert parts.layout.rows_per_step == ROWS_PER_STEP[name]
    assert not parts.report.declined
    before, after = parts.report.whole.parameters, parts.report.parts["denoise"].parameters
    assert 1 - after / before >= SHARE_THAT_LEAVES[name]
    assert parts.report.bytes_read_per_step_after < parts.report.bytes_read_per_step_before


def test_weights_are_shared_and_none_is_lost(architecture: Architecture) -> None:
    _, _, parts = architecture
    whole = {id(value.const_value) for value in parts.whole.graph.initializers.values() if value.uses()}
    found: set[int] = set()
    for part in (parts.prompt, parts.schedule, parts.denoise):
        if part is not None:
            found |= {id(v.const_value) for n, v in part.graph.initializers.items() if not n.startswith("hoist/")}
    assert found == whole


def test_the_loop_has_one_binding_for_the_schedule(architecture: Architecture) -> None:
    _, traced, parts = architecture
    names = [value.name for value in parts.denoise.graph.inputs]
    assert names.count("schedule_row") == 1
    assert "timestep" not in names
    loop = [name for name, input_class in traced.inputs.items() if input_class.value == "loop"]
    assert names[: len(loop)] == loop
    assert all(name in traced.inputs or name.startswith("prompt_") for name in names if name != "schedule_row")


def test_cross_attention_keys_and_values_run_once_a_request(architecture: Architecture) -> None:
    name, _, parts = architecture
    if name not in ("pixart", "unet"):
        pytest.skip("joint attention or labels: there are none")
    assert parts.prompt is not None
    kept = {value.name or "" for value in parts.prompt.graph.initializers.values()}
    assert any("attn2" in weight for weight in kept) or name == "unet"  # a U-Net's have no bias, and so no name
    assert len([tensor for tensor in parts.layout.prompt_tensors if tensor.read_by_loop]) >= 4
