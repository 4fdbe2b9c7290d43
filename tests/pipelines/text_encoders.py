"""Text encoders of the real classes with small random weights in which every token matters.

Each function takes the tokenizer directory (tests/pipelines/tokenizers.py) for its vocabulary and special
tokens, and returns the transformers module in float32 and eval mode; a pipeline's save_pretrained writes it.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

# The published SD 1, SD 2, SDXL and FLUX configs have this number, and pool where the id is largest instead.
OLD_EOS = 2


def random_clip(
    tokenizer: Path,
    *,
    width: int = 32,
    layers: int = 2,
    length: int = 77,
    activation: str = "quick_gelu",
    old_eos: bool = True,
    seed: int = 0,
) -> CLIPTextModel:
    """CLIP's text tower without projection (SD, SDXL's first, FLUX). CLIP-G has activation "gelu"."""
    config = _clip_config(tokenizer, width, layers, length, activation, old_eos)
    return _spread(CLIPTextModel(config), seed)


def random_clip_with_projection(
    tokenizer: Path,
    *,
    width: int = 32,
    layers: int = 2,
    length: int = 77,
    activation: str = "gelu",
    old_eos: bool = True,
    projection: int | None = None,
    seed: int = 1,
) -> CLIPTextModelWithProjection:
    """CLIP's text tower with projection to `projection` channels, `width` if none is given (SDXL's second, SD3)."""
    config = _clip_config(tokenizer, width, layers, length, activation, old_eos)
    config.projection_dim = projection or width
    return _spread(CLIPTextModelWithProjection(config), seed)


def random_t5(tokenizer: Path, *, width: int = 32, layers: int = 2, seed: int = 2) -> T5EncoderModel:
    """T5 v1.1's encoder: gated GELU, no biases (FLUX, SD3, PixArt)."""
    config = T5Config(
        vocab_size=_round_up(_vocabulary_size(tokenizer)),  # the published one is 32128 for 32100 tokens
        d_model=width,
        d_kv=width // 2,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    model = _spread(T5EncoderModel(config), seed)
    with torch.no_grad():
        for block in model.encoder.block:  # T5 does not scale its scores: the factor is in these weights from the start
            block.layer[0].SelfAttention.q.weight.mul_(config.d_kv**-0.5)
    return model


def random_gemma2(
    tokenizer: Path, *, width: int = 32, layers: int = 2, sliding_window: int = 4096, seed: int = 3
) -> Gemma2Model:
    """Gemma 2's decoder without a head (SANA): grouped queries, soft capping, every second layer with a window."""
    config = Gemma2Config(
        vocab_size=_vocabulary_size(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        query_pre_attn_scalar=width // 4,
        sliding_window=sliding_window,
        max_position_embeddings=8192,
    )
    return _spread(Gemma2Model(config), seed)


def random_ldm_bert(
    tokenizer: Path, *, width: int = 32, layers: int = 2, length: int = 77, seed: int = 4
) -> LDMBertModel:
    """The text encoder of the LDM paper's 1.4 B model (arXiv 2112.10752)."""
    config = LDMBertConfig(
        vocab_size=_vocabulary_size(tokenizer),
        max_position_embeddings=length,
        encoder_layers=layers,
        encoder_ffn_dim=2 * width,
        encoder_attention_heads=2,
        head_dim=width // 2,
        d_model=width,
    )
    return _spread(LDMBertModel(config), seed)


def _clip_config(
    tokenizer: Path, width: int, layers: int, length: int, activation: str, old_eos: bool
) -> CLIPTextConfig:
    vocabulary = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=length,
        hidden_act=activation,
        pad_token_id=1,
        bos_token_id=0 if old_eos else start,
        eos_token_id=OLD_EOS if old_eos else end,
    )


def _vocabulary_size(directory: Path) -> int:
    if (directory / "vocab.txt").is_file():
        return len((directory / "vocab.txt").read_text(encoding="utf-8").splitlines())
    if (directory / "tokenizer.json").is_file():
        content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        return 1 + max(len(content["model"]["vocab"]) - 1, *(token["id"] for token in content["added_tokens"]))
    # spiece.model alone: the class has 100 sentinels more, and a few hundred pieces are far under this.
    return 1024


def _round_up(size: int) -> int:
    return -(-size // 64) * 64


def _spread(module: nn.Module, seed: int) -> Any:
    """Random weights that keep a signal's size from layer to layer, so that each token reaches the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.Embedding):
                child.weight.normal_(0.0, 0.7, generator=generator)
            elif isinstance(child, nn.Linear):
                child.weight.normal_(0.0, 1.3 / math.sqrt(child.in_features), generator=generator)
                if child.bias is not None:
                    child.bias.normal_(0.0, 0.1, generator=generator)
            else:
                for parameter in child.parameters(recurse=False):  # of norms: about one, about zero for biases
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()
