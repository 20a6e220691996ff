"""Rows of tokens to learn from: conversations and passages of text, packed without padding.

A row holds several pieces. Each sees only itself, and counts its positions from zero, as
it will when it is a request of its own.
"""

import dataclasses
import random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from demo.chat import Conversations
from demo.tokenizer import BEGIN_OF_TEXT, END_OF_TEXT, TURN_END, TURN_START, special_ids

_CHAT_SHARE = 0.6
_SHORTEST_LONG_ROW_TOKENS = 1024
_SKIP_SHARE = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """B rows of T tokens. `targets` are the places, in the flattened rows, whose next token is learned."""

    tokens: Tensor  # [B, T] int64
    positions: Tensor  # [B, T] float32
    mask: Tensor  # [B, 1, T, T] bool
    targets: Tensor  # [N] int64
    labels: Tensor  # [N] int64


@dataclasses.dataclass(slots=True)
class _Piece:
    tokens: list[int]
    learned: list[bool]


class Packer:
    """Draws batches without end; the same seed draws the same ones."""

    def __init__(
        self, tokenizer: Tokenizer, texts: list[list[str]], chats: Conversations, reach_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._chats = chats
        self._reach = reach_tokens
        ids = special_ids(tokenizer)
        self._bos, self._end = ids[BEGIN_OF_TEXT], ids[END_OF_TEXT]
        self._turn_start, self._turn_end = ids[TURN_START], ids[TURN_END]
        gap = self._encode("\n\n")
        self._texts: list[list[list[int]]] = []
        for paragraphs in texts:
            encoded = [self._encode(paragraph) for paragraph in paragraphs]
            self._texts.append([*(one + gap for one in encoded[:-1]), [*encoded[-1], self._end]])
        self._text_weights = [sum(map(len, text)) for text in self._texts]

    @property
    def text_tokens(self) -> int:
        return sum(self._text_weights)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _conversation(self, rng: random.Random, room: int) -> _Piece:
        """As the chat template writes it; what the assistant says and its end of turn are learned."""
        piece = _Piece([self._bos], [False])
        long = room >= _SHORTEST_LONG_ROW_TOKENS
        drawn = self._chats.draw(rng, 3 * room, aside_share=0.4) if long else self._chats.draw(rng)
        for message in drawn:
            said = message["role"] == "assistant"
            head = [self._turn_start, *self._encode(message["role"] + "\n")]
            body = [*self._encode(message["content"]), self._turn_end]
            tail = self._encode("\n")
            piece.tokens += head + body + tail
            piece.learned += [False] * len(head) + [said] * len(body) + [False] * len(tail)
        return piece

    def _passage(self, rng: random.Random, longest: int) -> _Piece:
        """A text from the beginning of one of its paragraphs, up to its end or the longest allowed."""
        text = rng.choices(self._texts, self._text_weights)[0]
        tokens = [self._bos]
        for paragraph in text[rng.randrange(len(text)) :]:
            tokens += paragraph
            if len(tokens) >= longest:
                break
        tokens = tokens[:longest]
        return _Piece(tokens, [False] + [True] * (len(tokens) - 1))

    def _row(self, rng: random.Random, length: int) -> list[_Piece]:
        pieces: list[_Piece] = []
        room = length
        while room > 0:
            piece = self._conversation(rng, room) if rng.random() < _CHAT_SHARE else None
            if piece is None or len(piece.tokens) > room:
                piece = self._passage(rng, min(room, max(192, length // 4)))
            pieces.append(piece)
            room -= len(piece.tokens)
        return pieces

    def _positions(self, rng: random.Random, piece: _Piece) -> list[float]:
        """0, 1, 2, ... with one jump in some pieces, so that far distances are met (PoSE, arXiv:2309.10400)."""
        count = len(piece.tokens)
        positions = [float(i) for i in range(count)]
        if rng.random() < _SKIP_SHARE:
            start, jump = rng.randrange(count), rng.randrange(self._reach - count)
            positions[start:] = [p + jump for p in positions[start:]]
        return positions

    def batch(self, rng: random.Random, rows: int, length: int) -> Batch:
        tokens, positions, owners, learned = [], [], [], []
        for _ in range(rows):
            pieces = self._row(rng, length)
            tokens.append([token for piece in pieces for token in piece.tokens])
            positions.append([p for piece in pieces for p in self._positions(rng, piece)])
            owners.append([i for i, piece in enumerate(pieces) for _ in piece.tokens])
            learned.append([flag for piece in pieces for flag in piece.learned])
        ids, owner = torch.tensor(tokens), torch.tensor(owners)
        same = owner[:, :, None] == owner[:, None, :]
        flags = torch.tensor(learned)
        flags[:, 0] = False  # a label is the next token of the same row
        labels_at = flags.flatten().nonzero().squeeze(1)
        return Batch(
            tokens=ids,
            positions=torch.tensor(positions),
            mask=(same & torch.ones(length, length, dtype=torch.bool).tril())[:, None],
            targets=labels_at - 1,
            labels=ids.flatten()[labels_at],
        )
