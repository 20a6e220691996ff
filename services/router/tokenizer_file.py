"""What tokenizer.json says of itself that the `tokenizers` library does not tell."""

from __future__ import annotations

from typing import Any

import msgspec
from tokenizers import Tokenizer

from baton.router.token_pieces import BYTE_LEVEL_ALPHABET

# How many code points of text can become one: canonical composition joins four at the most.
_SHRINKING = {"NFC": 4}
_KEEPS_ALL_TEXT = frozenset({"ByteLevel", "Split", "Digits", "Metaspace", "Punctuation"})


class TokenizerFile(msgspec.Struct):
    """The small parts of tokenizer.json; its vocabulary is skipped."""

    decoder: dict[str, Any] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    added_tokens: list[dict[str, Any]] = []

    @classmethod
    def parse(cls, content: str) -> TokenizerFile:
        """`content` has passed the library, so it is well-formed."""
        return msgspec.json.decode(content, type=cls)


def max_chars_per_token(tokenizer: Tokenizer, file: TokenizerFile) -> int | None:
    """How many characters of text one token can cover. None where there is no bound, for the tokenizer may
    drop text, or join unknown or blank characters without end."""
    vocab = tokenizer.get_vocab()
    splitters = _parts(file.pre_tokenizer, "pretokenizers")
    if any(part["type"] == "ByteLevel" for part in splitters):
        covers_all_text = all(char in vocab for char in BYTE_LEVEL_ALPHABET)
    else:
        covers_all_text = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    drops_text = any(
        part["type"] not in _KEEPS_ALL_TEXT or part.get("behavior") == "Removed" for part in splitters
    )
    absorbs_blanks = any(token.get("lstrip") or token.get("rstrip") for token in file.added_tokens)
    if not covers_all_text or drops_text or absorbs_blanks:
        return None
    shrinking = 1
    for part in _parts(file.normalizer, "normalizers"):
        if not _keeps_length(part):
            if part["type"] not in _SHRINKING:
                return None
            shrinking *= _SHRINKING[part["type"]]
    return shrinking * max(map(len, vocab))


def _keeps_length(normalizer: dict[str, Any]) -> bool:
    """A Replace by a regular expression may shrink text; one of a string does where it puts in less."""
    if normalizer["type"] == "Replace" and "String" in normalizer["pattern"]:
        return len(normalizer["content"]) >= len(normalizer["pattern"]["String"])
    return bool(normalizer["type"] == "Prepend")


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if component is None:
        return []
    if component["type"] == "Sequence":
        return [part for inner in component[key] for part in _parts(inner, key)]
    return [component]
