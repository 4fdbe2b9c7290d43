"""Copies a checkpoint that transformers 5 wrote to what transformers 4 reads: names only, no number changes.

transformers 4 has a level `text_model` in the names of CLIP's text tower, as all published files have, and its plain
T5Tokenizer and CLIPTokenizer read other files than tokenizer.json, which its fast ones read.
"""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

FAST = {"T5Tokenizer": "T5TokenizerFast", "CLIPTokenizer": "CLIPTokenizerFast"}
LEVEL = "text_model."


def with_published_names(source: Path, copy: Path) -> None:
    """A whole copy, links resolved."""
    shutil.copytree(source, copy)
    path = copy / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    for folder, entry in index.items():
        if not isinstance(entry, list):
            continue
        _, name = entry
        if name in FAST:
            entry[1] = FAST[name]
            config = copy / folder / "tokenizer_config.json"
            fields = json.loads(config.read_text(encoding="utf-8")) | {"tokenizer_class": FAST[name]}
            if fields.get("extra_special_tokens") == []:
                del fields["extra_special_tokens"]  # transformers 4 wants a mapping
            config.write_text(json.dumps(fields, indent=2), encoding="utf-8")
        elif name is not None and name.startswith("CLIPText"):
            file = copy / folder / "model.safetensors"
            tensors = {
                k if k.startswith((LEVEL, "text_projection")) else LEVEL + k: v for k, v in load_file(file).items()
            }
            save_file(tensors, file, {"format": "pt"})
    path.write_text(json.dumps(index, indent=2), encoding="utf-8")
