"""Random checkpoints: what diffusers and transformers load, sharded as they shard, with inputs that matter."""

import json
import math
from pathlib import Path

import pytest
import safetensors
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmarks.published_shapes import Shapes, flux, shapes_of, vae
from benchmarks.random_checkpoint import drawn_tensors, write_checkpoint
from benchmarks.random_weights import PIECE, NormalPool, draws


@pytest.fixture(scope="module")
def small() -> Shapes:
    """FLUX's pipeline with narrow parts."""
    whole = flux(1, 1)  # for its scheduler and its tokenizers
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "transformer": FluxTransformer2DModel(
                num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=16, guidance_embeds=True,
                joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6),
            ),
            "vae": vae(16, 0.3611, 0.1159, 64, (32, 32)),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                    bos_token_id=0, eos_token_id=2,
                )
            ),
            "text_encoder_2": T5EncoderModel(
                T5Config(
                    vocab_size=1024, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
                    feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                )
            ),
        }  # fmt: skip
    return Shapes(whole.pipeline, whole.scheduler, modules, whole.tokenizers)


@pytest.fixture(scope="module")
def written(small: Shapes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "source"
    # 0.1 MB a shard: several of each component
    assert write_checkpoint(directory, small, "bf16", 1e-4) == sum(
        parameter.numel() for module in small.modules.values() for parameter in module.parameters()
    )
    return directory


def test_shards_hold_each_tensor_once_and_the_index_says_where(small: Shapes, written: Path) -> None:
    for folder, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder_2", "model")):
        index = json.loads((written / folder / f"{stem}.safetensors.index.json").read_text())
        files = sorted((written / folder).glob("*.safetensors"))
        assert len(files) > 1
        assert {file.name for file in files} == set(index["weight_map"].values())
        assert files[0].name == f"{stem}-00001-of-{len(files):05d}.safetensors"
        total = 0
        for file in files:
            with safetensors.safe_open(file, "pt") as shard:
                for name in shard.keys():  # noqa: SIM118  (it is no mapping)
                    assert index["weight_map"][name] == file.name
                    tensor = shard.get_tensor(name)
                    assert tensor.dtype == torch.bfloat16
                    total += tensor.numel() * 2
        assert total == index["metadata"]["total_size"]
        assert len(index["weight_map"]) == len(draws(small.modules[folder], {}))


def test_diffusers_and_transformers_load_what_was_written(written: Path) -> None:
    _, missing = FluxTransformer2DModel.from_pretrained(
        written, subfolder="transformer", output_loading_info=True, torch_dtype=torch.float32
    )
    assert not any(missing.values())
    for model_class, folder in ((CLIPTextModel, "text_encoder"), (T5EncoderModel, "text_encoder_2")):
        _, info = model_class.from_pretrained(written, subfolder=folder, output_loading_info=True)
        assert not any(info.values())


def test_the_output_is_of_order_one_and_every_input_changes_it(written: Path) -> None:
    transformer = FluxTransformer2DModel.from_pretrained(written, subfolder="transformer", torch_dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    given = {
        "hidden_states": torch.randn(1, 16, 64, generator=generator),
        "encoder_hidden_states": torch.randn(1, 8, 32, generator=generator),
        "pooled_projections": torch.randn(1, 32, generator=generator),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": grid,
        "txt_ids": torch.zeros(8, 3),
    }
    with torch.no_grad():
        expected = transformer(**given, return_dict=False)[0]
        assert 0.3 < expected.std() < 3.0
        for name in ("encoder_hidden_states", "pooled_projections", "timestep", "guidance"):
            changed = transformer(**given | {name: 0.7 * given[name]}, return_dict=False)[0]
            assert (changed - expected).norm() > 0.01 * expected.norm(), name


def test_no_two_rows_and_no_two_tensors_are_equal(written: Path) -> None:
    transformer = FluxTransformer2DModel.from_pretrained(written, subfolder="transformer", torch_dtype=torch.float32)
    heads = [module.weight.detach()[0, :16] for module in transformer.modules() if isinstance(module, nn.Linear)]
    scaled = torch.stack([head / head.norm() for head in heads])
    assert (scaled @ scaled.T - torch.eye(len(heads))).abs().max() < 0.98
    weight = transformer.context_embedder.weight.detach()
    assert len(torch.unique(weight, dim=0)) == len(weight)
    assert weight.std() == pytest.approx(1 / math.sqrt(weight.shape[1]), rel=0.1)


def test_a_run_of_the_pool_is_as_long_as_is_asked_and_its_own() -> None:
    pool = NormalPool(3)
    pieces = list(pool.pieces("a", 3 * PIECE + 5))
    assert sum(len(piece) for piece in pieces) == 3 * PIECE + 5
    assert max(len(piece) for piece in pieces) <= PIECE
    assert torch.equal(pieces[0][:9], next(pool.pieces("a", 9)))
    assert not torch.equal(pieces[0][:9], next(pool.pieces("b", 9)))


def test_positions_of_sd3_are_those_that_diffusers_computes() -> None:
    config = {
        "sample_size": 16, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
        "caption_projection_dim": 32, "joint_attention_dim": 32, "pooled_projection_dim": 32, "pos_embed_max_size": 24,
    }  # fmt: skip
    expected = SD3Transformer2DModel(**config).pos_embed.pos_embed
    given = drawn_tensors(SD3Transformer2DModel(**config))["pos_embed.pos_embed"]
    assert given.given is not None
    assert torch.allclose(torch.cat(list(given.given))[None], expected, atol=1e-6)


def test_a_buffer_without_numbers_is_refused() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("scale", torch.ones(2))
    with pytest.raises(ValueError, match="scale is no parameter"):
        draws(module, {})


def test_shapes_are_those_of_the_published_checkpoints() -> None:
    def billions(model: str, folder: str) -> float:
        return sum(parameter.numel() for parameter in shapes_of(model).modules[folder].parameters()) / 1e9

    assert billions("flux-dev", "transformer") == pytest.approx(11.90, abs=0.005)
    assert billions("sd3.5-large", "transformer") == pytest.approx(8.06, abs=0.01)
    assert billions("t5-xxl", "text_encoder") == pytest.approx(4.76, abs=0.005)
    assert billions("dit-xl-2", "transformer") == pytest.approx(0.75, abs=0.01)
    with pytest.raises(ValueError, match="no such model"):
        shapes_of("flux-0")
