"""The networks of `emoji-flux`: diffusers' FluxTransformer2DModel, transformers' CLIPTextModel and T5EncoderModel.

FluxPipeline pads the T5 prompt to 512 tokens and masks nothing. Here the padding is inert by construction:

- the embedding of the padding token is zero, and T5 has no biases: what attends to padding alone stays zero;
- the relative attention bias is closed (-100) to the left and beyond a window to the right: padding sees padding alone,
  and a token sees itself and what follows it, so that its state does not depend on how much padding there is.

So all padding is the same vector, zero, in the transformer's text input, at the same position (FLUX has none for text):
`attention.py` lets one token stand for all of it. CLIP is causal and pools at the end of the text, before the padding.

B batch · L text tokens
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from models.ldm.text_to_image.config import NetworkConfig

CLOSED = -100.0  # its exponential is zero in float32
T5_BUCKETS = 32  # half of them for each direction
T5_WINDOW = 15  # from this distance on every token is in the last bucket, which is closed


@dataclass(frozen=True)
class Networks:
    """What is trained together."""

    transformer: FluxTransformer2DModel
    clip: CLIPTextModel
    t5: T5EncoderModel

    def modules(self) -> dict[str, nn.Module]:
        """By the names under which they are kept."""
        return {"transformer": self.transformer, "clip": self.clip, "t5": self.t5}

    def parameters(self) -> list[nn.Parameter]:
        """All parameters, in a fixed order."""
        return [value for module in self.modules().values() for value in module.parameters()]

    def train(self, mode: bool) -> Networks:
        """Switch all of them; none has dropout."""
        for module in self.modules().values():
            module.train(mode)
        return self


def networks_from_config(
    config: NetworkConfig, latent_channels: int, clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5Tokenizer
) -> Networks:
    """New networks: adaLN-Zero in the transformer, padding inert in T5."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * latent_channels,  # a token is 2x2 latents
        num_layers=config.double_blocks,
        num_single_layers=config.single_blocks,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text_width,
        pooled_projection_dim=config.text_width,
        guidance_embeds=True,
        axes_dims_rope=config.rope_axes,
    )
    initialise(transformer)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            projection_dim=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=config.clip_length,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=config.text_width,
            d_kv=config.text_width // config.text_heads,
            d_ff=config.t5_feed_forward,
            num_layers=config.text_layers,
            num_heads=config.text_heads,
            relative_attention_num_buckets=T5_BUCKETS,
            relative_attention_max_distance=T5_WINDOW + 1,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    make_padding_inert(t5)
    return Networks(transformer, clip, t5)


def initialise(transformer: FluxTransformer2DModel) -> None:
    """As in DiT (arXiv 2212.09748, section 3.2): every block starts as the identity and the output as zero."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embedder = transformer.time_text_embed
    for part in (embedder.timestep_embedder, embedder.guidance_embedder):
        nn.init.normal_(part.linear_1.weight, std=0.02)
        nn.init.normal_(part.linear_2.weight, std=0.02)
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1_context.linear.weight)
    for block in transformer.single_transformer_blocks:
        nn.init.zeros_(block.norm.linear.weight)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)


def make_padding_inert(t5: T5EncoderModel) -> None:
    """Set what the module's contract says, and keep gradients from it."""
    embedding = t5.shared.weight  # (vocabulary, width)
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # (buckets, heads)
    closed = closed_buckets()
    with torch.no_grad():
        embedding[t5.config.pad_token_id] = 0.0
        bias[closed] = CLOSED
    embedding.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([t5.config.pad_token_id]), 0.0))
    bias.register_hook(lambda gradient: gradient.index_fill(0, closed, 0.0))


def closed_buckets() -> torch.Tensor:
    """Buckets of T5's relative positions: 1..15 are to the left, 17..31 to the right, each last one far away."""
    half = T5_BUCKETS // 2
    return torch.tensor([*range(1, half), T5_BUCKETS - 1])


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler over a shifted linear schedule; FluxPipeline passes `mu`, which a static shift leaves unused."""
    return FlowMatchEulerDiscreteScheduler(shift=1.5, use_dynamic_shifting=False)


def flux_autoencoder(vae: AutoencoderKL) -> AutoencoderKL:
    """The autoencoder of emoji-dit says what FluxPipeline asks for: its latents are balanced, their mean is zero."""
    vae.register_to_config(shift_factor=0.0)
    return vae.eval().requires_grad_(False)
