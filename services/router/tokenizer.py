"""A model folder's tokenizer: text to token ids, token ids to text, conversations to prompts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from baton.errors import InvalidRequest, ModelFolderError
from baton.router.chat_template import ChatTemplate
from baton.router.detokenizer import Detokenizer, StopStrings, TextStream, detokenize
from baton.router.token_pieces import TokenPieces
from baton.router.tokenizer_file import TokenizerFile, max_chars_per_token

# Encoding this much text takes about as long as handing it to a thread and back.
_INLINE_CHARS = 2048

_SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class TextProcessor:
    """Text handling of one model. Build it with `from_folder`.

    Safe for use by several threads; encoding releases the interpreter lock.
    """

    def __init__(self, tokenizer: Tokenizer, file: TokenizerFile, chat_template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        special = (id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        self.pieces = TokenPieces(tokenizer, file.decoder, frozenset(special))
        self._max_chars_per_token = max_chars_per_token(tokenizer, file)

    @classmethod
    def from_folder(cls, folder: str | Path) -> TextProcessor:
        """Reads `tokenizer.json`, and where they are, `tokenizer_config.json`, `special_tokens_map.json` and
        `chat_template.jinja`.

        Raises:
            ModelFolderError: a file is missing or malformed; the message names it.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        content = _read(path)
        if content is None:
            raise ModelFolderError(f"{path}: the file is missing")
        try:
            tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # the library has no narrower class for a malformed file
            raise ModelFolderError(f"{path}: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _read_object(folder / "special_tokens_map.json") | _read_object(
            folder / "tokenizer_config.json"
        )
        special_tokens = _special_tokens(config)
        _flag_special(tokenizer, special_tokens)
        return cls(tokenizer, TokenizerFile.parse(content), _chat_template(folder, config, special_tokens))

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the tokenizer knows; a model's own vocabulary may be padded beyond it."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def fewest_tokens(self, text: str) -> int:
        """A lower bound on the length of `text` in tokens, found without encoding it; 0 where this tokenizer
        can shrink text by any amount."""
        return -(-len(text) // self._max_chars_per_token) if self._max_chars_per_token else 0

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; long text is encoded in a thread, so that the event loop goes on.

        Args:
            add_special_tokens: let the tokenizer add what it adds to a text, such as BOS.
        """
        if len(text) <= _INLINE_CHARS:
            return self._encode(text, add_special_tokens)
        return await asyncio.to_thread(self._encode, text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`. Ids that the tokenizer does not know stand for nothing."""
        return detokenize(self.pieces, token_ids, skip_special_tokens=skip_special_tokens)

    def stream(
        self,
        stops: StopStrings,
        *,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
        include_stop: bool = False,
    ) -> TextStream:
        """Text of one generated sequence, which goes on behind a prompt; see `TextStream`."""
        detokenizer = Detokenizer(self.pieces, skip_special_tokens=skip_special_tokens)
        return TextStream(detokenizer, stops, min_tokens=min_tokens, include_stop=include_stop)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it; empty where the tokenizer does not know it."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt text of a conversation; see `ChatTemplate.render`.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses the messages.
        """
        if self._chat_template is None:
            raise InvalidRequest(
                "messages: this model has no chat template; use /v1/completions", field="messages"
            )
        return self._chat_template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFolderError(f"{path}: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    content = _read(path)
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and the like, each given as text or as an object with the text in `content`."""
    tokens: dict[str, str] = {}
    for name in _SPECIAL_TOKEN_NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _flag_special(tokenizer: Tokenizer, special_tokens: Mapping[str, str]) -> None:
    """As in transformers, a token that tokenizer_config.json names (as `eos_token`, say) is special, even
    where tokenizer.json holds it as an ordinary one. None is added, for its id could be beyond the model's."""
    known = [token for token in special_tokens.values() if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in known])


def _chat_template(
    folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    path = folder / "chat_template.jinja"
    if (source := _read(path)) is not None:
        return ChatTemplate(source, special_tokens, str(path))
    declared = config.get("chat_template")
    if isinstance(declared, list):  # several by name; the one for plain chat is "default"
        declared = next((entry["template"] for entry in declared if entry["name"] == "default"), None)
    if declared is None:
        return None
    origin = f"{folder / 'tokenizer_config.json'}: chat_template"
    if not isinstance(declared, str):
        raise ModelFolderError(f"{origin}: text is expected, not {type(declared).__name__}")
    return ChatTemplate(declared, special_tokens, origin)
