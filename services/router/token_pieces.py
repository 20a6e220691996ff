"""The bytes that each token of a vocabulary stands for, so that text can be put together a token at a time.

Covers the decoders of the model families that Baton serves: byte-level BPE (GPT-2, Llama 3, Qwen, Tekken) and
SentencePiece BPE with byte fallback (Llama 1 and 2, Mistral, Gemma), and tokenizers without a decoder.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

from baton.errors import ModelFolderError

_ONE_PER_BYTE = "baton.one_per_byte"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _one_replacement_per_byte(error: UnicodeError) -> tuple[str, int]:
    """SentencePiece shows each byte that is no UTF-8 as a U+FFFD of its own; byte-level BPE shows one for each
    broken character, which is Python's "replace"."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_ONE_PER_BYTE, _one_replacement_per_byte)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + rank): byte for rank, byte in enumerate(others)
    }


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


class TokenPieces:
    """Maps a token id to bytes, computed when a token is first seen.

    `leading_spaces`: spaces that mark the beginning of a text and are no part of it. `on_invalid_utf8`: the
    error handler for bytes that are no UTF-8. Ids that the tokenizer does not know (padding of the model's
    vocabulary) stand for nothing.

    Raises:
        ModelFolderError: `tokenizer.json` has a decoder of another kind.
    """

    def __init__(
        self, tokenizer: Tokenizer, decoder: dict[str, Any] | None, special_token_ids: frozenset[int]
    ) -> None:
        self.special_token_ids = special_token_ids
        self.leading_spaces = 0
        self.on_invalid_utf8 = "replace"
        self._tokenizer = tokenizer
        self._cache: dict[int, bytes] = {}
        self._to_bytes = self._mapping(_flattened(decoder))

    def __getitem__(self, token_id: int) -> bytes:
        piece = self._cache.get(token_id)
        if piece is None:
            token = self._tokenizer.id_to_token(token_id)
            piece = self._cache[token_id] = b"" if token is None else self._to_bytes(token)
        return piece

    def _mapping(self, decoders: list[dict[str, Any]]) -> Callable[[str], bytes]:
        kinds = [decoder["type"] for decoder in decoders]
        if kinds == ["ByteLevel"]:
            return _byte_level_bytes
        if not kinds:
            self.leading_spaces = 1  # without a decoder, tokens are words and spaces stand between them
            return lambda token: f" {token}".encode()
        return self._sentencepiece_mapping(decoders, kinds)

    def _sentencepiece_mapping(
        self, decoders: list[dict[str, Any]], kinds: list[str]
    ) -> Callable[[str], bytes]:
        """Replace*, ByteFallback?, Fuse, Strip?: the form in which SentencePiece models are published."""
        replaced: list[tuple[str, str]] = []
        while kinds and kinds[0] == "Replace" and "String" in decoders[0]["pattern"]:
            replaced.append((decoders[0]["pattern"]["String"], decoders[0]["content"]))
            decoders, kinds = decoders[1:], kinds[1:]
        has_byte_fallback = kinds[:1] == ["ByteFallback"]
        rest = decoders[1:] if has_byte_fallback else decoders
        if [decoder["type"] for decoder in rest] not in (["Fuse"], ["Fuse", "Strip"]):
            raise _unsupported(kinds)
        if len(rest) == 2:
            strip = rest[1]
            if strip["content"] != " " or strip["stop"] != 0:
                raise _unsupported([f"Strip of {strip['content']!r} at the end"])
            self.leading_spaces = int(strip["start"])
        if has_byte_fallback:
            self.on_invalid_utf8 = _ONE_PER_BYTE

        def to_bytes(token: str) -> bytes:
            for pattern, content in replaced:
                token = token.replace(pattern, content)
            byte = _BYTE_TOKEN.fullmatch(token) if has_byte_fallback else None
            return token.encode() if byte is None else bytes.fromhex(byte[1])

        return to_bytes


def _byte_level_bytes(token: str) -> bytes:
    """A token outside the alphabet is an added one and stands for its own text."""
    if all(char in BYTE_LEVEL_ALPHABET for char in token):
        return bytes(BYTE_LEVEL_ALPHABET[char] for char in token)
    return token.encode()


def _flattened(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [part for inner in decoder["decoders"] for part in _flattened(inner)]
    return [decoder]


def _unsupported(kinds: list[str]) -> ModelFolderError:
    return ModelFolderError(
        f"tokenizer.json: decoder {'+'.join(kinds) or 'none'} is not supported; "
        "there are ByteLevel, Replace+ByteFallback+Fuse(+Strip), and no decoder"
    )
