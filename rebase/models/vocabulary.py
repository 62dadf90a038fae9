"""Vocabularies as byte strings, so that tokens of different tokenizers can be compared exactly.

Byte-level BPE represents bytes with a printable alphabet (GPT-2's); sentencepiece-like models write a space
as ▁ and unknown bytes as <0xNN>. Both are decoded to the bytes of each token. Added tokens (chat markers,
padding, …) mean different things to different models, so they are never shared; only a row that an adapter
trained for one is transferred, to the added token of the same spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rebase.errors import UnsupportedModel

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"  # ▁


@dataclass(frozen=True, slots=True)
class SharedTokens:
    """Tokens that two vocabularies have in common, ordered by source id.

    `source_ids`, `target_ids`: (n,) int64, paired by equal bytes. Overlaps are shares of one side's tokens.
    `identical`: every token, added ones included, has the same id on both sides.
    """

    source_ids: Tensor
    target_ids: Tensor
    overlap_source: float
    overlap_target: float
    jaccard: float
    identical: bool


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens`: bytes → id, without added tokens. `pieces`: the tokenizer's own spelling → id, with them.
    `added`: spelling → id of the added tokens only.
    """

    tokens: Mapping[bytes, int]
    pieces: Mapping[str, int]
    added: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_tokenizer_json(cls, raw: Mapping[str, Any]) -> Vocabulary:
        """Parse a tokenizer.json document. Raises UnsupportedModel if it is invalid or of an unknown kind."""
        model = _require_object(raw, "model")
        model_type = model.get("type") or ("BPE" if "merges" in model else None)
        if model_type not in {"BPE", "Unigram", "WordLevel"}:
            raise UnsupportedModel(
                f"tokenizer.json: the model type {str(model_type)[:40]!r} is not supported."
            )
        vocabulary = dict(_iter_pieces(model.get("vocab")))
        added = dict(_iter_added_tokens(raw.get("added_tokens") or []))
        added_ids = set(added.values())
        ordinary = {
            piece: id_ for piece, id_ in vocabulary.items() if piece not in added and id_ not in added_ids
        }
        byte_level = any(part.get("type") == "ByteLevel" for part in _iter_components(raw))
        decode_piece = (
            _decode_byte_level
            if byte_level
            else _encode_text
            if model_type == "WordLevel"
            else _decode_sentencepiece
        )
        return cls(
            tokens=_map_bytes_to_ids(ordinary, decode_piece), pieces={**vocabulary, **added}, added=added
        )


def find_shared_tokens(source: Vocabulary, target: Vocabulary) -> SharedTokens:
    """The tokens that represent the same bytes in both vocabularies."""
    id_pairs = sorted(
        (source.tokens[token], target.tokens[token]) for token in source.tokens.keys() & target.tokens.keys()
    )
    count = len(id_pairs)
    ids = torch.tensor(id_pairs, dtype=torch.long).view(count, 2)
    return SharedTokens(
        source_ids=ids[:, 0].contiguous(),
        target_ids=ids[:, 1].contiguous(),
        overlap_source=count / max(len(source.tokens), 1),
        overlap_target=count / max(len(target.tokens), 1),
        jaccard=count / max(len(source.tokens) + len(target.tokens) - count, 1),
        identical=dict(source.pieces) == dict(target.pieces),
    )


def map_token_rows(source: Vocabulary, target: Vocabulary, source_rows: int, target_rows: int) -> Tensor:
    """For each row of a's table, the row of the same token in b's table, or −1: (a_rows,) int64.

    Identical vocabularies map row by row, including padding rows after the last token. Otherwise tokens are
    paired by bytes, and added tokens by spelling. No row of b is used twice.
    """
    row_map = torch.full((source_rows,), -1, dtype=torch.long)
    shared_tokens = find_shared_tokens(source, target)
    if shared_tokens.identical:
        row_count = min(source_rows, target_rows)
        row_map[:row_count] = torch.arange(row_count)
        return row_map
    added_pairs = [
        (source.added[piece], target.added[piece])
        for piece in sorted(source.added.keys() & target.added.keys())
    ]
    added_ids = torch.tensor(added_pairs, dtype=torch.long).view(len(added_pairs), 2)
    source_ids, target_ids = (
        torch.cat([shared_tokens.source_ids, added_ids[:, 0]]),
        torch.cat([shared_tokens.target_ids, added_ids[:, 1]]),
    )
    in_range = (source_ids < source_rows) & (target_ids < target_rows)
    row_map[source_ids[in_range]] = target_ids[in_range]
    return row_map


def _map_bytes_to_ids(pieces: Mapping[str, int], decode_piece: Any) -> dict[bytes, int]:
    """If pieces represent the same bytes, ordinary ones win over <0xNN>, then the lower id wins."""
    ordered = sorted(pieces.items(), key=lambda item: (_BYTE_TOKEN.fullmatch(item[0]) is not None, item[1]))
    tokens: dict[bytes, int] = {}
    for piece, id_ in ordered:
        token = decode_piece(piece)
        if token:
            tokens.setdefault(token, id_)
    return tokens


@cache
def _build_byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 maps to itself, the rest starts at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _decode_byte_level(piece: str) -> bytes | None:
    alphabet = _build_byte_alphabet()
    if any(character not in alphabet for character in piece):
        return None
    return bytes(alphabet[character] for character in piece)


def _decode_sentencepiece(piece: str) -> bytes | None:
    if match := _BYTE_TOKEN.fullmatch(piece):
        return bytes([int(match[1], 16)])
    return _encode_text(piece.replace(_SPACE, " "))


def _encode_text(piece: str) -> bytes | None:
    try:
        return piece.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can express but UTF-8 cannot
        return None


def _iter_pieces(vocab: Any) -> Iterator[tuple[str, int]]:
    """(piece, id) from either form: an object, or Unigram's list of [piece, score]."""
    entries: Iterable[tuple[Any, Any]]
    if isinstance(vocab, Mapping):
        entries = vocab.items()
    elif isinstance(vocab, list):
        entries = ((row[0] if isinstance(row, list) and row else None, id_) for id_, row in enumerate(vocab))
    else:
        raise UnsupportedModel("tokenizer.json: model.vocab should be an object or a list.")
    for piece, id_ in entries:
        if not isinstance(piece, str) or not _is_id(id_):
            raise UnsupportedModel("tokenizer.json: model.vocab should map strings to token ids.")
        yield piece, id_


def _iter_added_tokens(rows: Any) -> Iterator[tuple[str, int]]:
    for row in rows if isinstance(rows, list) else [rows]:
        if (
            not isinstance(row, Mapping)
            or not isinstance(row.get("content"), str)
            or not _is_id(row.get("id"))
        ):
            raise UnsupportedModel("tokenizer.json: each of added_tokens should have a content and an id.")
        yield row["content"], row["id"]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _iter_components(raw: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The pre-tokenizer's and decoder's components; sequences are expanded one level."""
    for name in ("pre_tokenizer", "decoder"):
        part = raw.get(name)
        if not isinstance(part, Mapping):
            continue
        components = part.get("pretokenizers") or part.get("decoders") or []
        yield part
        yield from (item for item in components if isinstance(item, Mapping))


def _require_object(raw: Any, key: str) -> Mapping[str, Any]:
    value = raw.get(key) if isinstance(raw, Mapping) else None
    if not isinstance(value, Mapping):
        raise UnsupportedModel(f"tokenizer.json has no {key} object.")
    return value
