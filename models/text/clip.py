"""CLIP's text tower (arXiv 2103.00020), with the outputs that pipelines take from it.

    last          hidden states of the last layer, after the final norm        SD 1 and 2
    penultimate   hidden_states[-2]: before the last layer, without a norm     SDXL, SD3
    pooled        `last` at the end-of-text token                              FLUX
    projected     text_projection(pooled)                                      SDXL's second, SD3

Legend: texts = prompts encoded at once, tokens = 77, width = hidden size.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from models.latent_diffusion import SourceError, TextEncoder, TextRule
from models.text.loading import load_text_model
from models.text.masks import causal_mask
from models.text.tokenizer import load_tokenizer

ClipOutput = Literal["last", "penultimate", "pooled", "projected"]

# transformers: configs from before its PR #24773 have this number, and pool at the largest id of each text.
_OLD_EOS_TOKEN_ID = 2


def clip_encoder(
    source: Path,
    outputs: Mapping[str, ClipOutput],
    name: str = "text_encoder",
    tokenizer: str = "tokenizer",
    length: int | None = None,
) -> TextEncoder:
    """Reads SOURCE/name and SOURCE/tokenizer; `outputs` gives, for each name, what it is.

    `length` is the tokenizer's model_max_length if not given, which is what SD, SDXL, SD3 and FLUX cut at.
    Raises SourceError.
    """
    loaded = load_tokenizer(source, tokenizer)
    tokens = length or loaded.max_length
    model_class = CLIPTextModelWithProjection if "projected" in outputs.values() else CLIPTextModel
    model = load_text_model(model_class, source, name)
    if tokens is None or tokens > model.config.max_position_embeddings:
        raise SourceError(
            f"{source}: {tokenizer} cuts at model_max_length={tokens}, but {name} has positions for "
            f"{model.config.max_position_embeddings} tokens; correct model_max_length in tokenizer_config.json"
        )
    # StableDiffusionPipeline hands the mask over if a text encoder's config asks for it; no published one does.
    if getattr(model.config, "use_attention_mask", False):
        raise SourceError(f"{source / name}: use_attention_mask in its config.json is not supported")
    module = ClipText(model, tuple(outputs.values()), tokens)
    rule = TextRule(length=tokens)
    return TextEncoder(
        name=name,
        module=module,
        outputs=tuple(outputs),
        tokenizer=loaded.tokenizer,
        pad_id=loaded.pad_id,
        prompt=rule,
        negative=rule,
    )


class ClipText(nn.Module):
    """input_ids int64 [texts, tokens] -> one float32 tensor for each of `outputs`.

    They are [texts, tokens, width]; pooled is [texts, width], projected [texts, projection].
    The layers are called one by one: transformers 5.23 collects hidden states with hooks on them.
    """

    def __init__(
        self, model: CLIPTextModel | CLIPTextModelWithProjection, outputs: tuple[ClipOutput, ...], tokens: int
    ) -> None:
        super().__init__()
        self.outputs = outputs
        projected = isinstance(model, CLIPTextModelWithProjection)
        self.tower: CLIPTextModel = model.text_model if projected else model
        self.projection: nn.Linear | None = model.text_projection if "projected" in outputs else None
        self.last_layer = len(self.tower.encoder.layers) - 1
        if set(outputs) == {"penultimate"}:
            # A weight that is not read would still be written.
            self.tower.encoder.layers = self.tower.encoder.layers[:-1]
        self.eos_token_id: int = self.tower.config.eos_token_id
        self.mask: Tensor
        self.register_buffer("mask", causal_mask(tokens), persistent=False)  # [1, 1, tokens, tokens]

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """CLIPTextModel.forward, with each output where the pipeline takes it."""
        hidden = self.tower.embeddings(input_ids)  # [texts, tokens, width]
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self.tower.encoder.layers):
            if index == self.last_layer:
                found["penultimate"] = hidden
            hidden = layer(hidden, self.mask)  # [texts, tokens, width]
        found.setdefault("penultimate", hidden)
        if set(self.outputs) - {"penultimate"}:
            found["last"] = self.tower.final_layer_norm(hidden)  # [texts, tokens, width]
        if {"pooled", "projected"} & set(self.outputs):
            found["pooled"] = self._pool(input_ids, found["last"])  # [texts, width]
        if self.projection is not None:
            found["projected"] = self.projection(found["pooled"])  # [texts, projection]
        return tuple(found[output] for output in self.outputs)

    def _pool(self, input_ids: Tensor, last: Tensor) -> Tensor:
        """`last` at the first end-of-text token, as a product with zeros and a one.

        argmax gives any one of several equal ids, by backend, and TensorRT 8.6 has none of integers.
        """
        ids = input_ids.float()  # exact: there are fewer than 2^24 tokens
        largest = ids.amax(dim=-1, keepdim=True)  # [texts, 1]
        ends = ids == (largest if self.eos_token_id == _OLD_EOS_TOKEN_ID else float(self.eos_token_id))
        tokens = input_ids.shape[1]
        position = torch.arange(tokens, dtype=torch.float32)  # [tokens]
        first = torch.where(ends, position, float(tokens)).amin(dim=-1, keepdim=True)  # [texts, 1]
        first = torch.where(first == tokens, 0.0, first)  # transformers: the first token where there is no end
        chosen = (position == first).float()  # [texts, tokens]
        return (chosen[:, None, :] @ last)[:, 0]  # [texts, width]
