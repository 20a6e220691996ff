"""Token ids back to text, one token at a time.

A token passes three stations:

    token id -> its bytes (`TokenPieces`) -> whole characters (`Detokenizer`) -> text past all stop strings
    (`TextStream`)

Each station holds back only what may still change: bytes of an unfinished character, and the tail of the text
that may become a stop string. Work per token does not grow with the length of the output.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from baton.router.token_pieces import TokenPieces


class Detokenizer:
    """Joins the bytes of tokens to text and gives out a character once it is whole.

    The text of all `push` calls and of the `flush` at the end, put together, is the text of all tokens. Bytes
    that are no UTF-8 come out as U+FFFD, but never because a character was cut in the middle.

    Args:
        is_continuation: the text goes on behind other text, so a leading space is kept that the tokenizer
            takes for the mark of a text's beginning.
    """

    def __init__(
        self, pieces: TokenPieces, *, skip_special_tokens: bool = True, is_continuation: bool = True
    ) -> None:
        self._pieces = pieces
        self._skipped = pieces.special_token_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(pieces.on_invalid_utf8)
        self._leading_spaces = 0 if is_continuation else pieces.leading_spaces

    def push(self, token_id: int) -> str:
        """The text that became certain with this token."""
        if token_id in self._skipped:
            return ""
        text = self._decoder.decode(self._pieces[token_id])
        return self._without_leading_spaces(text) if self._leading_spaces and text else text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, or nothing."""
        return self._decoder.decode(b"", final=True)

    def _without_leading_spaces(self, text: str) -> str:
        removed = min(len(text) - len(text.lstrip(" ")), self._leading_spaces)
        self._leading_spaces = self._leading_spaces - removed if removed == len(text) else 0
        return text[removed:]


def detokenize(pieces: TokenPieces, token_ids: Iterable[int], *, skip_special_tokens: bool) -> str:
    """The text of a whole sequence."""
    detokenizer = Detokenizer(pieces, skip_special_tokens=skip_special_tokens, is_continuation=False)
    parts = [detokenizer.push(token_id) for token_id in token_ids]
    return "".join([*parts, detokenizer.flush()])


class StopStrings:
    """Finds the first of several strings in text that comes in pieces.

    An automaton over all of them at once, so that the cost per character depends neither on their number nor
    on their lengths (Aho and Corasick, "Efficient String Matching", 1975). A request's choices share it.

    Node n stands for a text that begins a stop string; node 0 for the empty text. `match[n]` is the longest
    stop string that ends at n. `held_chars[n]` counts the characters at n's end that may still grow into one.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._children: list[dict[str, int]] = [{}]
        self._fallback = [0]
        self.match: list[str | None] = [None]
        self.held_chars = [0]
        for string in strings:
            self._add(string)
        self._link(depth_of=self.held_chars.copy())

    def __bool__(self) -> bool:
        return len(self._children) > 1

    def next_node(self, node: int, char: str) -> int:
        """The node of the longest beginning of a stop string that the text ends with after `char`."""
        while (child := self._children[node].get(char)) is None:
            if node == 0:
                return 0
            node = self._fallback[node]
        return child

    def _add(self, string: str) -> None:
        node = 0
        for depth, char in enumerate(string, start=1):
            if char not in self._children[node]:
                self._children[node][char] = len(self._children)
                self._children.append({})
                self._fallback.append(0)
                self.match.append(None)
                self.held_chars.append(depth)
            node = self._children[node][char]
        self.match[node] = string

    def _link(self, depth_of: list[int]) -> None:
        """Breadth first, so that a node's fallback, which is shallower, is complete before the node."""
        queue = deque(self._children[0].values())
        while queue:
            node = queue.popleft()
            fallback = self._fallback[node]
            self.match[node] = self.match[node] or self.match[fallback]
            is_leaf = not self._children[node]
            self.held_chars[node] = self.held_chars[fallback] if is_leaf else depth_of[node]
            for char, child in self._children[node].items():
                self._fallback[child] = self.next_node(fallback, char)
                queue.append(child)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of one sequence and, where it ended there, the stop string that was found."""

    text: str
    stop_string: str | None = None


class TextStream:
    """The text of one choice while it is generated, ending before the first stop string.

    The first match is the one that is complete first; of those that end at the same character, the longest. A
    match that completes before `min_tokens` tokens does not count and its text is kept.

    Args:
        include_stop: keep the stop string in the text.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: StopStrings,
        *,
        min_tokens: int = 0,
        include_stop: bool = False,
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._tokens = 0
        self._held = ""
        self._node = 0
        self.decoded_chars = 0
        """Characters of all whole characters so far, held back or not."""

    def push(self, token_id: int, *, is_last: bool = False, is_hidden: bool = False) -> TextDelta:
        """Adds a token; `is_hidden` leaves its text out, `is_last` gives out all that is held back."""
        self._tokens += 1
        text = "" if is_hidden else self._detokenizer.push(token_id)
        if is_last:
            text += self._detokenizer.flush()
        self.decoded_chars += len(text)
        return self._past_stops(text, is_last) if self._stops else TextDelta(text)

    def _past_stops(self, text: str, is_last: bool) -> TextDelta:
        stops, node = self._stops, self._node
        can_stop = self._tokens >= self._min_tokens
        pending = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            node = stops.next_node(node, char)
            if can_stop and (stop := stops.match[node]) is not None:
                return TextDelta(pending[: end if self._include_stop else end - len(stop)], stop)
        self._node = node
        certain = len(pending) if is_last else len(pending) - stops.held_chars[node]
        self._held = pending[certain:]
        return TextDelta(pending[:certain])
