"""Attention for training: where one text token stands for many equal ones, and in plain products.

Equal to diffusers' FluxAttnProcessor on the sequence written out (tests/models/ldm/text_to_image/test_attention.py).
torch 2.13's fused attention with a mask takes as long in its backward pass on a CPU as all the rest of the step.

B batch · T tokens, text first · h heads · d head width
"""

from __future__ import annotations

import math

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention


class RepeatedTokenAttention:
    """An attention processor: `attention_mask` (B, 1, 1, T) holds the logarithm of how often each token is there."""

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Image states, or image and text states where the block keeps them apart."""
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (-1, attn.head_dim)))  # (B, T, h, d)
        key = attn.norm_k(attn.to_k(hidden_states).unflatten(-1, (-1, attn.head_dim)))
        value = attn.to_v(hidden_states).unflatten(-1, (-1, attn.head_dim))
        if encoder_hidden_states is not None:
            text_query = attn.norm_added_q(attn.add_q_proj(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim)))
            text_key = attn.norm_added_k(attn.add_k_proj(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim)))
            text_value = attn.add_v_proj(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim))
            query = torch.cat([text_query, query], dim=1)
            key = torch.cat([text_key, key], dim=1)
            value = torch.cat([text_value, value], dim=1)
        query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1).transpose(1, 2)  # (B, h, T, d)
        key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1).transpose(1, 2)
        logits = (query @ key.transpose(-1, -2)).float() / math.sqrt(attn.head_dim)  # (B, h, T, T)
        if attention_mask is not None:
            logits = logits + attention_mask
        weights = logits.softmax(dim=-1).to(value.dtype)
        mixed: torch.Tensor = (weights @ value.transpose(1, 2)).transpose(1, 2).flatten(2)  # (B, T, h d)
        if encoder_hidden_states is None:
            return mixed
        text, image = mixed.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        return attn.to_out[0](image.contiguous()), attn.to_add_out(text.contiguous())
