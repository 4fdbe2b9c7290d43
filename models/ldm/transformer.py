"""The denoiser of stage 2: diffusers' DiTTransformer2DModel, initialised as the paper has it, and its noise."""

from __future__ import annotations

from diffusers import DDPMScheduler, DiTTransformer2DModel, DPMSolverMultistepScheduler
from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from models.ldm.config import NULL_CLASS, TransformerConfig


def transformer_from_config(config: TransformerConfig, latent_channels: int, latent_size: int) -> DiTTransformer2DModel:
    """A new DiT with adaLN-Zero: every block starts as the identity and the output as zero (DiT, section 3.2)."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=config.layers,
        sample_size=latent_size,
        patch_size=config.patch,
        attention_bias=True,
        num_embeds_ada_norm=NULL_CLASS,
    )
    initialise(transformer)
    disable_label_dropout(transformer)
    return transformer


def initialise(transformer: DiTTransformer2DModel) -> None:
    """DiT's `initialize_weights`: diffusers 0.42 leaves torch's defaults, and no gate at zero."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    projection = transformer.pos_embed.proj
    nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
    nn.init.zeros_(projection.bias)
    for block in transformer.transformer_blocks:
        embedding = block.norm1.emb
        nn.init.normal_(embedding.class_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(embedding.timestep_embedder.linear_1.weight, std=0.02)
        nn.init.normal_(embedding.timestep_embedder.linear_2.weight, std=0.02)
        nn.init.zeros_(block.norm1.linear.weight)
    for layer in (transformer.proj_out_1, transformer.proj_out_2):
        nn.init.zeros_(layer.weight)


def disable_label_dropout(transformer: DiTTransformer2DModel) -> None:
    """Turn off the dropout inside each block: each block drops other labels, and hardly a sample has none."""
    for module in transformer.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0


def noise_schedule(config: TransformerConfig) -> DDPMScheduler:
    """The forward process that training draws from."""
    return DDPMScheduler(
        num_train_timesteps=config.noise_steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
    )


def solver(config: TransformerConfig) -> DPMSolverMultistepScheduler:
    """The scheduler that is stored with the model: DPM-Solver++ 2M (arXiv 2211.01095)."""
    # Made from the forward process, it also stores what only other schedulers read: clip_sample is true by default in
    # DDIM and DDPM, and latents must not be clipped to [-1, 1].
    return DPMSolverMultistepScheduler.from_config(
        noise_schedule(config).config, solver_order=2, timestep_spacing="trailing"
    )
