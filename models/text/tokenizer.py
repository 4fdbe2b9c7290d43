"""Tokenizers of a source in the `tokenizers` format, whatever files they come in.

transformers itself reads them, with the class that model_index.json names, as the pipeline does; no code of the
source is run. What is kept is the backend: normaliser, splitting, model, special tokens. Cutting and padding are
the caller's, and are taken off.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from models.latent_diffusion import SourceError
from models.text.loading import quiet

UNLIMITED = 10**6  # transformers writes 10^30 where a tokenizer has no limit


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer with its special tokens, without truncation and padding of its own."""

    tokenizer: tokenizers.Tokenizer
    pad_id: int
    max_length: int | None  # model_max_length of tokenizer_config.json; None: no limit


def load_tokenizer(source: Path, folder: str) -> LoadedTokenizer:
    """Reads SOURCE/folder; raises SourceError in one line, also where a package is missing that its files need."""
    directory = source / folder
    if not directory.is_dir():
        raise SourceError(f"{directory}: not found; the prompt's tokenizer is read from it")
    tokenizer_class = _tokenizer_class(source, folder)
    pieces = _sentencepiece_file(directory)
    try:
        with quiet():
            loaded = tokenizer_class.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the parsers of `tokenizers` raise a bare Exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if pieces and "tiktoken" in reason:  # transformers 5.23 tries that next, and complains of it alone
            reason = f"{pieces} is not a sentencepiece file, or a damaged one"
        raise SourceError(f"{directory}: not read as a {tokenizer_class.__name__}: {reason}") from error
    if not loaded.is_fast:
        raise SourceError(
            f"{directory}: {tokenizer_class.__name__} has no `tokenizers` form; save it with its fast class"
        )
    if loaded.pad_token_id is None:
        raise SourceError(f"{directory}: no pad token; tokenizer_config.json names one for every pipeline")
    if loaded.split_special_tokens or loaded.truncation_side != "right":
        raise SourceError(
            f"{directory}: split_special_tokens={loaded.split_special_tokens} and truncation_side="
            f"{loaded.truncation_side!r}; only False and 'right' are supported"
        )
    backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    limit = int(min(loaded.model_max_length, UNLIMITED))
    return LoadedTokenizer(backend, int(loaded.pad_token_id), None if limit == UNLIMITED else limit)


def _tokenizer_class(source: Path, folder: str) -> type[PreTrainedTokenizerBase]:
    config = _read_json(source / folder / "tokenizer_config.json")
    entry = _read_json(source / "model_index.json").get(folder) or ["transformers", config.get("tokenizer_class")]
    library, named = (str(entry[0]), str(entry[1])) if isinstance(entry, list) and len(entry) == 2 else ("", str(entry))
    found = getattr(transformers, named, None) if named.isidentifier() else None
    if library != "transformers" or not (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)):
        raise SourceError(
            f"{source}: its {folder} is a {named!r} of {library!r}, which is no tokenizer class of transformers; "
            f"pipelines have CLIPTokenizer, T5TokenizerFast, GemmaTokenizerFast or BertTokenizer"
        )
    return found


def _sentencepiece_file(directory: Path) -> str | None:
    """The file that the tokenizer is read from, if it is one; raises SourceError if a package for it is missing.

    transformers 5.23 takes it for a tiktoken file then, and names a third package.
    """
    pieces = [name for name in ("spiece.model", "tokenizer.model") if (directory / name).is_file()]
    if not pieces or (directory / "tokenizer.json").is_file():
        return None
    available = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
    missing = [name for name, there in available.items() if not there]
    if missing:
        raise SourceError(
            f"{directory}: {pieces[0]} without a tokenizer.json is read with {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )
    return pieces[0]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path}: not a JSON object")
    return content
