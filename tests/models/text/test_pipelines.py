"""Tokenizer, runtime and module together give what each pipeline's own encode_prompt gives."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from latentc.text import encode_texts, tokenizer_from_json
from torch import Tensor
from torch.nn import functional

from models.latent_diffusion import TextEncoder
from models.text.clip import clip_encoder
from models.text.gemma import gemma_encoder
from models.text.ldm_bert import ldm_bert_encoder
from models.text.t5 import t5_encoder
from tests.models.tracing import relative_error
from tests.pipelines.text_encoders import (
    random_clip,
    random_clip_with_projection,
    random_gemma2,
    random_ldm_bert,
    random_t5,
)
from tests.pipelines.tokenizers import (
    make_bert_tokenizer,
    make_clip_tokenizer,
    make_gemma_tokenizer,
    make_t5_tokenizer,
)

BOUND = 1e-5
PROMPTS = ["", "A photo of a RED cat!", " 漢字 naïve 🙂 <|endoftext|> </s> <bos> \n", "one two three, " * 300]
NEGATIVE = ["", "blurry", "watermark, " * 200, "x"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tokenizer and text encoder, each in a folder named for what it is."""
    root = tmp_path_factory.mktemp("text")
    clip_l = make_clip_tokenizer(root / "clip_l_tokenizer")
    clip_g = make_clip_tokenizer(root / "clip_g_tokenizer", pad="!")
    t5 = make_t5_tokenizer(root / "t5_tokenizer")
    gemma = make_gemma_tokenizer(root / "gemma_tokenizer")
    bert = make_bert_tokenizer(root / "bert_tokenizer")
    random_clip(clip_l).save_pretrained(root / "clip_l")
    random_clip_with_projection(clip_l, seed=5).save_pretrained(root / "clip_l_projected")
    random_clip_with_projection(clip_g, layers=3, old_eos=False).save_pretrained(root / "clip_g")
    random_t5(t5, width=64).save_pretrained(root / "t5")
    random_gemma2(gemma).save_pretrained(root / "gemma")
    random_ldm_bert(bert).save_pretrained(root / "bert")
    return root


def test_stable_diffusion(source: Path) -> None:
    pipeline = StableDiffusionPipeline(
        vae=None, text_encoder=model(source, "clip_l"), tokenizer=tokenizer(source, "clip_l"), unet=None,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    expected, expected_negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, NEGATIVE)
    encoder = clip_encoder(source, {"hidden": "last"}, "clip_l", "clip_l_tokenizer")
    agree(encode(encoder, PROMPTS), [expected])
    agree(encode(encoder, NEGATIVE, negative=True), [expected_negative])


def test_stable_diffusion_xl(source: Path) -> None:
    pipeline = StableDiffusionXLPipeline(
        vae=None, text_encoder=model(source, "clip_l"), tokenizer=tokenizer(source, "clip_l"),
        text_encoder_2=model(source, "clip_g"), tokenizer_2=tokenizer(source, "clip_g"), unet=None,
        scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip
    expected, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPTS, negative_prompt=NEGATIVE)
    first = clip_encoder(source, {"hidden": "penultimate"}, "clip_l", "clip_l_tokenizer")
    second = clip_encoder(source, {"hidden": "penultimate", "pooled": "projected"}, "clip_g", "clip_g_tokenizer")
    for texts, hidden, summary in ((PROMPTS, expected, pooled), (NEGATIVE, negative, negative_pooled)):
        (one,), (two, projected) = encode(first, texts), encode(second, texts)
        agree([torch.cat([one, two], dim=-1), projected], [hidden, summary])


def test_stable_diffusion_3(source: Path) -> None:
    pipeline = StableDiffusion3Pipeline(
        transformer=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=model(source, "clip_l_projected"), tokenizer=tokenizer(source, "clip_l"),
        text_encoder_2=model(source, "clip_g"), tokenizer_2=tokenizer(source, "clip_g"),
        text_encoder_3=model(source, "t5"), tokenizer_3=tokenizer(source, "t5"),
    )  # fmt: skip
    expected, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, negative_prompt=NEGATIVE)
    outputs = {"hidden": "penultimate", "pooled": "projected"}
    first, first_pooled = encode(clip_encoder(source, outputs, "clip_l_projected", "clip_l_tokenizer"), PROMPTS)
    second, second_pooled = encode(clip_encoder(source, outputs, "clip_g", "clip_g_tokenizer"), PROMPTS)
    (t5,) = encode(t5_encoder(source, "t5", "t5_tokenizer", "t5", 256), PROMPTS)
    clip = torch.cat([first, second], dim=-1)
    joined = torch.cat([functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1])), t5], dim=-2)
    agree([joined, torch.cat([first_pooled, second_pooled], dim=-1)], [expected, pooled])


def test_flux(source: Path) -> None:
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), None, model(source, "clip_l"), tokenizer(source, "clip_l"),
        model(source, "t5"), tokenizer(source, "t5"), None,
    )  # fmt: skip
    expected, pooled, _ = pipeline.encode_prompt(PROMPTS, None)
    agree(encode(clip_encoder(source, {"pooled": "pooled"}, "clip_l", "clip_l_tokenizer"), PROMPTS), [pooled])
    agree(encode(t5_encoder(source, "t5", "t5_tokenizer", "t5", 512), PROMPTS), [expected])


@pytest.mark.parametrize(("pipeline_class", "length"), [(PixArtAlphaPipeline, 120), (PixArtSigmaPipeline, 300)])
def test_pixart(source: Path, pipeline_class: type, length: int) -> None:
    pipeline = pipeline_class(tokenizer(source, "t5"), model(source, "t5"), None, None, DDIMScheduler())
    hidden, mask, negative, negative_mask = pipeline.encode_prompt(PROMPTS, negative_prompt=NEGATIVE)
    encoder = t5_encoder(source, "t5", "t5_tokenizer", "t5", length, mask_output="mask", lower_strip=True)
    agree(encode(encoder, PROMPTS), [hidden, mask.float()])
    # PixArt lowers and strips the negative prompt too.
    agree(encode(encoder, NEGATIVE, negative=True), [negative, negative_mask.float()])


@pytest.mark.parametrize("instruction", [["Enhance the user prompt:", "User Prompt: "], None])
def test_sana(source: Path, instruction: list[str] | None) -> None:
    pipeline = SanaPipeline(tokenizer(source, "gemma"), model(source, "gemma"), None, None, DDIMScheduler())
    hidden, mask, negative, negative_mask = pipeline.encode_prompt(
        PROMPTS, negative_prompt=NEGATIVE, max_sequence_length=60, complex_human_instruction=instruction
    )
    encoder = gemma_encoder(source, "gemma", "gemma_tokenizer", "hidden", "mask", 60, "\n".join(instruction or []))
    assert encoder.symbolic_length == (instruction is not None)
    agree(encode(encoder, PROMPTS), [hidden, mask.float()])
    agree(encode(encoder, NEGATIVE, negative=True), [negative, negative_mask.float()])


def test_latent_diffusion(source: Path) -> None:
    # LDMTextToImagePipeline has this in its __call__.
    ids = tokenizer(source, "bert")(
        PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = model(source, "bert")(ids)[0]
    agree(encode(ldm_bert_encoder(source, "hidden", "bert", "bert_tokenizer"), PROMPTS), [expected])


def test_agreement_is_not_by_chance(source: Path) -> None:
    """Another prompt, another layer and a mask each change more than the bound, so the bound sees them."""
    last = encode(clip_encoder(source, {"hidden": "last"}, "clip_l", "clip_l_tokenizer"), PROMPTS[1:3])
    penultimate = encode(clip_encoder(source, {"hidden": "penultimate"}, "clip_l", "clip_l_tokenizer"), PROMPTS[1:3])
    masked = t5_encoder(source, "t5", "t5_tokenizer", "t5", 64, mask_output="mask")
    unmasked = t5_encoder(source, "t5", "t5_tokenizer", "t5", 64)
    assert relative_error(last[0][0], last[0][1]) > 0.1
    assert relative_error(last[0], penultimate[0]) > 0.1
    assert relative_error(encode(masked, PROMPTS)[0], encode(unmasked, PROMPTS)[0]) > 0.1


def encode(encoder: TextEncoder, texts: Sequence[str], negative: bool = False) -> tuple[Tensor, ...]:
    """As a bundle is used: the tokenizer by way of its file, ids by the runtime, then the module."""
    backend = tokenizer_from_json(encoder.tokenizer.to_str().encode(), "tokenizer.json")
    encoded = encode_texts(backend, texts, encoder.negative if negative else encoder.prompt, encoder.pad_id)
    arrays = (encoded.ids, encoded.mask) if encoder.takes_mask else (encoded.ids,)
    with torch.no_grad():
        return encoder.module(*map(torch.from_numpy, arrays))


def agree(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Each within BOUND, or equal where it is a mask."""
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype is torch.float32
        assert relative_error(one, other.detach()) <= BOUND


def model(source: Path, folder: str) -> transformers.PreTrainedModel:
    """As diffusers loads it: with sdpa, where the class has that."""
    classes = {
        "clip_l": transformers.CLIPTextModel,
        "clip_l_projected": transformers.CLIPTextModelWithProjection,
        "clip_g": transformers.CLIPTextModelWithProjection,
        "t5": transformers.T5EncoderModel,
        "gemma": transformers.Gemma2Model,
    }
    if folder == "bert":
        from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

        return LDMBertModel.from_pretrained(source / folder).eval()
    return classes[folder].from_pretrained(source / folder).eval()


def tokenizer(source: Path, kind: str) -> transformers.PreTrainedTokenizerBase:
    """As diffusers loads it."""
    classes = {"t5": "T5TokenizerFast", "gemma": "GemmaTokenizerFast", "bert": "BertTokenizer"}
    return getattr(transformers, classes.get(kind, "CLIPTokenizer")).from_pretrained(source / f"{kind}_tokenizer")
