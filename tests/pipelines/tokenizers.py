"""Real tokenizers of a few hundred tokens, in the files that public checkpoints have.

Each function makes one for the corpus below, writes it to `directory` and returns that. Which files a
public checkpoint has, and which of them a pipeline's class reads:

    make_clip_tokenizer     vocab.json, merges.txt                  CLIPTokenizer (FLUX, SD, SDXL, SD3)
    make_t5_tokenizer       tokenizer.json and/or spiece.model      T5TokenizerFast (FLUX, SD3), T5Tokenizer (PixArt)
    make_gemma_tokenizer    tokenizer.json                          GemmaTokenizerFast (SANA)
    make_bert_tokenizer     vocab.txt                               BertTokenizer (LDMTextToImagePipeline)

and all of them tokenizer_config.json and special_tokens_map.json.
"""

import json
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "a photo of a red cat sitting on a wooden table in the morning light",
    "a painting of the old harbour at night, oil on canvas, highly detailed",
    "a small green house by the lake, mountains in the background, sunset",
    "portrait of an old fisherman with a white beard, studio lighting, 85mm",
    "two dogs running along the beach, waves, blue sky, photorealistic",
    "a bowl of fresh fruit: apples, oranges, grapes and one blue plum",
    "an astronaut riding a horse on the moon, digital art, trending",
    "red heart, green heart, blue car, yellow star, purple flower, black square",
    "low quality, blurry, deformed hands, watermark, text, cropped, worst quality",
    "it's the artist's best work; they've said we'll see, I'm sure he'd agree",
    "enhance the user prompt: evaluate the level of detail, add colors, shapes, sizes, textures and spatial",
    "relationships to create vivid scenes; transform short prompts into detailed ones. Here are examples of how",
    "un café à Zürich, Ångström, naïve façade, señor, smørrebrød, Straße, déjà vu",
)

# Three rules of sentencepiece's nmt_nfkc in the compiled form: U+00A0 -> space, U+FF21 -> A, U+2026 -> "...".
_NBSP, _FULLWIDTH_A, _ELLIPSIS = "\u00a0", "\uff21", "\u2026"


def make_clip_tokenizer(directory: Path, *, pad: str = "<|endoftext|>", merges: int = 200, length: int = 77) -> Path:
    """Byte-level BPE with </w>. `pad` is "<|endoftext|>" for CLIP-L, and "!" (id 0) for the CLIP of SD 2 and CLIP-G."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = [word for line in CORPUS for word in line.lower().split()]
    trainer = trainers.BpeTrainer(
        vocab_size=10**6,
        min_frequency=1,
        end_of_word_suffix="</w>",
        show_progress=False,
        limit_alphabet=10**6,
    )
    tokenizer.train_from_iterator(words, trainer)
    rules = [tuple(rule) for rule in json.loads(tokenizer.to_str())["model"]["merges"]][:merges]
    # Order as in the published vocab.json: bytes ("!" is 0), bytes that end a word, merges, the two special tokens.
    alphabet = _bytes_as_characters()
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in rules)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    _write(directory / "vocab.json", vocabulary)
    text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in rules)
    (directory / "merges.txt").write_text(text, encoding="utf-8")
    special_tokens = {
        "bos_token": _added("<|startoftext|>"),
        "eos_token": _added("<|endoftext|>"),
        "pad_token": pad,
        "unk_token": _added("<|endoftext|>"),
    }
    _write(directory / "special_tokens_map.json", special_tokens)
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            **({"0": _decoder_entry("!")} if pad == "!" else {}),
            str(vocabulary["<|startoftext|>"]): _decoder_entry("<|startoftext|>", normalized=True),
            str(vocabulary["<|endoftext|>"]): _decoder_entry("<|endoftext|>", normalized=pad == "!"),
        },
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": length,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    }
    _write(directory / "tokenizer_config.json", config)
    return directory


def make_t5_tokenizer(
    directory: Path, *, vocab_size: int = 300, length: int = 512, fast: bool = True, spiece: bool = True
) -> Path:
    """Unigram with </s> at the end and <pad> = 0. `fast` writes tokenizer.json, `spiece` writes spiece.model."""
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    frequent = _frequent_pieces(["▁" + word for line in CORPUS for word in line.split()])[: vocab_size - 3]
    total = sum(count for _, count in frequent)
    pieces = [(piece, math.log(count / total)) for piece, count in frequent]
    known = {piece for piece, _ in pieces}
    # Single characters of any prompt are wanted too.
    pieces += [(piece, -12.0) for piece in ["▁", *map(chr, range(33, 127))] if piece not in known]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]
    sentinels = [f"<extra_id_{i}>" for i in range(100)]
    directory.mkdir(parents=True, exist_ok=True)
    if spiece:
        _write_spiece(directory / "spiece.model", pieces)
    if fast:
        vocabulary = [*pieces, *((token, 0.0) for token in reversed(sentinels))]
        tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
        tokenizer.normalizer = normalizers.Precompiled(compiled_normalisation())
        tokenizer.pre_tokenizer = split
        tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
        tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<pad>", "</s>", "<unk>", *sentinels)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
        )
        # The published tokenizer.json has a truncation of its own, which a caller must not inherit.
        tokenizer.enable_truncation(length)
        tokenizer.save(str(directory / "tokenizer.json"))
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write(directory / "special_tokens_map.json", {"additional_special_tokens": sentinels, **named})
    first = len(pieces) + len(sentinels) - 1  # <extra_id_0> has the largest id
    config = {
        "add_prefix_space": True,
        "added_tokens_decoder": {
            **{str(number): _decoder_entry(token) for number, token in enumerate(("<pad>", "</s>", "<unk>"))},
            **{str(first - number): _decoder_entry(token) for number, token in enumerate(sentinels)},
        },
        "additional_special_tokens": sentinels,
        "clean_up_tokenization_spaces": True,
        "extra_ids": 100,
        "legacy": True,
        "model_max_length": length,
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
        **named,
    }
    _write(directory / "tokenizer_config.json", config)
    return directory


def make_gemma_tokenizer(directory: Path, *, merges: int = 300) -> Path:
    """BPE with byte fallback, <bos> first. The file says that padding is at the left; SANA's pipeline sets right."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=10**6, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator([f" {line}" for line in CORPUS], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    rules = [tuple(rule) for rule in learned["merges"]][:merges]
    alphabet = sorted({c for piece in learned["vocab"] for c in piece} | {chr(c) for c in range(33, 127)} | {"\n"})
    pieces = [*special, *bytes_, *alphabet, *(a + b for a, b in rules)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    model = models.BPE(vocab=vocabulary, merges=rules, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos>:0 $A:0", pair="<bos>:0 $A:0 <bos>:1 $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {name: _added(f"<{name[:3]}>") for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    _write(directory / "special_tokens_map.json", named)
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(vocabulary[token]): _decoder_entry(token) for token in special},
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "model_max_length": 10**30,
        "pad_token": "<pad>",
        "padding_side": "left",
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    }
    _write(directory / "tokenizer_config.json", config)
    return directory


def make_bert_tokenizer(directory: Path, *, vocab_size: int = 300) -> Path:
    """WordPiece, uncased: vocab.txt."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word.strip(",.:;") for line in CORPUS for word in line.lower().split()]
    starts, insides = _frequent_pieces(words, at_start=True), _frequent_pieces(words, at_start=False)
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = [
        *special,
        *(piece for piece, _ in starts[: vocab_size // 2]),
        *("##" + piece for piece, _ in insides[: vocab_size // 2]),
        *letters,
        *("##" + letter for letter in letters),
    ]
    directory.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{piece}\n" for piece in dict.fromkeys(pieces))
    (directory / "vocab.txt").write_text(lines, encoding="utf-8")
    named = {
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }
    _write(directory / "special_tokens_map.json", named)
    config = {
        "do_lower_case": True,
        "model_max_length": 77,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
        **named,
    }
    _write(directory / "tokenizer_config.json", config)
    return directory


def compiled_normalisation() -> bytes:
    """A small precompiled_charsmap of sentencepiece: size of a trie, the trie as a double array, the replacements."""
    rules = {_NBSP.encode(): b" ", _FULLWIDTH_A.encode(): b"A", _ELLIPSIS.encode(): b"..."}
    replacements = b"".join(value + b"\0" for value in rules.values())
    offsets = {key: replacements.index(value + b"\0") for key, value in rules.items()}
    units = [0] * 2048
    used = {0}

    def place(node: int, prefix: bytes) -> None:
        """Darts: a child of `node` by byte c is at base ^ c, labelled c; a leaf at base ^ 0 holds the value."""
        labels = sorted({key[len(prefix)] for key in rules if key.startswith(prefix) and len(key) > len(prefix)})
        leaf = prefix in rules
        wanted = [*([0] if leaf else []), *labels]
        base = next(b for b in range(256, 2048, 256) if not any(b ^ c in used for c in wanted))
        units[node] |= (node ^ base) << 10
        used.update(base ^ c for c in wanted)
        if leaf:
            units[node] |= 1 << 8
            units[base] = offsets[prefix] | 1 << 31
        for label in labels:
            units[base ^ label] |= label
            place(base ^ label, prefix + bytes([label]))

    place(0, b"")
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    return len(trie).to_bytes(4, "little") + trie + replacements


def _frequent_pieces(words: list[str], at_start: bool | None = None) -> list[tuple[str, int]]:
    """Parts of words by the characters that they cover, most first; only those at the start, or only the others.

    tokenizers 0.23's unigram and WordPiece trainers give another vocabulary on every run: they are not used.
    """
    counts: Counter[str] = Counter()
    for word in words:
        for begin in range(len(word)):
            if at_start is None or at_start == (begin == 0):
                counts.update(word[begin:end] for end in range(begin + 1, min(len(word), begin + 8) + 1))
    return sorted(counts.items(), key=lambda item: (-item[1] * len(item[0]), item[0]))


def _write_spiece(path: Path, pieces: list[tuple[str, float]]) -> None:
    """sentencepiece's ModelProto, field by field: two packages have its definition, and refuse each other's."""
    model = b""
    for piece, score in pieces:
        kind = {"<pad>": 3, "</s>": 3, "<unk>": 2}.get(piece, 1)  # 1: normal, 2: unknown, 3: control
        model += _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
    minus_one = 2**64 - 1
    trainer = _number(3, 1) + _number(40, 2) + _number(41, minus_one) + _number(42, 1) + _number(43, 0)
    model += _field(2, trainer)  # unigram; unk, bos, eos, pad
    model += _field(3, _field(1, b"nmt_nfkc") + _field(2, compiled_normalisation()))
    path.write_bytes(model)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    return (bytes([value & 0x7F | 0x80]) + _varint(value >> 7)) if value > 0x7F else bytes([value])


def _bytes_as_characters() -> list[str]:
    """GPT-2's printable character for each byte, in the order of the published vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(c) for c in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _added(content: str) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def _decoder_entry(content: str, *, normalized: bool = False) -> dict[str, Any]:
    return {**_added(content), "normalized": normalized, "special": True}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
