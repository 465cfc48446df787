"""The text behind the bundled pair: the Python standard library, cut into documents and tokenized.

One document is one top-level block of a source file, and the end-of-sequence token ends every
document, so a model trained here stops at the end of a function, as a served model stops at the
end of an answer.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS = "<|eos|>"
EOS_ID = 0
VOCAB_SIZE = 4096
CONTEXT = 2048
MIN_DOCUMENT_CHARS = 200
HELDOUT_PERCENT = 7

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "__pycache__", "pydoc_data"}
_GENERATED_PREFIXES = ("encodings/cp", "encodings/iso", "encodings/mac_", "encodings/koi8", "_sysconfigdata")
_GENERATED_FILES = {"encodings/aliases.py", "stringprep.py", "html/entities.py"}


@dataclass(frozen=True)
class TokenDocuments:
    """Documents as one run of tokens: document i is ``tokens[starts[i]:starts[i + 1]]``."""

    tokens: np.ndarray
    starts: np.ndarray


def stdlib_root() -> Path:
    """Folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_source(relative: str) -> bool:
    """Whether a file is hand-written library code: no tests, no packages of others, no generated table."""
    if _SKIPPED_FOLDERS & set(relative.split("/")[:-1]) or relative in _GENERATED_FILES:
        return False
    return not relative.startswith(_GENERATED_PREFIXES)


def is_held_out(relative: str) -> bool:
    """Whether the file is kept from all training; a hash of its path, so the split never drifts."""
    digest = hashlib.sha256(relative.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELDOUT_PERCENT


def source_files(root: Path, held_out: bool) -> list[tuple[str, str]]:
    """(relative path, text) of one side of the split, by path; undecodable files are left out."""
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if not is_source(relative) or is_held_out(relative) != held_out:
            continue
        try:
            found.append((relative, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def _definition_start(node: ast.stmt, lines: list[str], floor: int) -> int:
    """First line (from 0) of a definition with its decorators and the comment right above it."""
    decorators = getattr(node, "decorator_list", [])
    start = min([node.lineno, *(d.lineno for d in decorators)]) - 1
    while start > floor and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return start


def _cut_lines(tree: ast.Module, lines: list[str]) -> list[int]:
    """Line numbers (from 0) at which a new top-level block begins."""
    cuts, previous_end, after_definition = [0], 0, False
    for node in tree.body:
        defines = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if defines or after_definition:
            cuts.append(_definition_start(node, lines, previous_end))
        previous_end, after_definition = node.end_lineno or node.lineno, defines
    return [*sorted(set(cuts)), len(lines)]


def split_documents(source: str) -> list[str]:
    """Top-level blocks of one file in order; small neighbours are merged, so none is a stray line."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    lines = source.splitlines()
    documents: list[str] = []
    pending = ""
    cuts = _cut_lines(tree, lines)
    for first, last in itertools.pairwise(cuts):
        block = "\n".join(line.rstrip() for line in lines[first:last]).strip("\n")
        pending = f"{pending}\n\n{block}".strip("\n") if block else pending
        if len(pending) >= MIN_DOCUMENT_CHARS:
            documents.append(pending + "\n")
            pending = ""
    return [*documents, pending + "\n"] if pending else documents


def file_documents(held_out: bool, root: Path | None = None) -> Iterator[list[str]]:
    """The documents of each source file of one side of the split."""
    for _, text in source_files(root or stdlib_root(), held_out):
        documents = split_documents(text)
        if documents:
            yield documents


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of exactly ``VOCAB_SIZE`` entries, the end token being id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE or tokenizer.token_to_id(EOS) != EOS_ID:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} entries, not {VOCAB_SIZE}")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, *folders: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as ``AutoTokenizer`` reads them."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    for folder in folders:
        wrapped.save_pretrained(folder)


def tokenize(tokenizer: Tokenizer, files: Iterable[list[str]]) -> list[TokenDocuments]:
    """Each file's documents as tokens, every document ended by the end token."""
    result = []
    for documents in files:
        encoded = [np.array([*e.ids, EOS_ID], np.int16) for e in tokenizer.encode_batch(documents)]
        lengths = np.array([len(e) for e in encoded])
        starts = (np.cumsum(lengths) - lengths).astype(np.int32)
        result.append(TokenDocuments(np.concatenate(encoded), starts))
    return result


def join_files(files: list[TokenDocuments]) -> TokenDocuments:
    """One run of all files' documents, in order."""
    offsets = np.cumsum([0, *(len(f.tokens) for f in files)])
    starts = np.concatenate([f.starts + offset for f, offset in zip(files, offsets, strict=False)])
    return TokenDocuments(np.concatenate([f.tokens for f in files]), starts.astype(np.int32))


def save_corpus(documents: TokenDocuments, path: Path) -> None:
    """Write ``tokens`` (int16) and ``starts`` (int32) as safetensors."""
    from safetensors.numpy import save_file

    save_file(
        {"tokens": documents.tokens.astype(np.int16), "starts": documents.starts.astype(np.int32)}, path
    )


def load_corpus(path: Path) -> TokenDocuments:
    """Read what `save_corpus` wrote."""
    from safetensors.numpy import load_file

    data = load_file(path)
    return TokenDocuments(data["tokens"], data["starts"])
