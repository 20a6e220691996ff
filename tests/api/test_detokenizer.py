"""Deltas put together are the whole text, and stop strings end it at the right character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from baton.router.detokenizer import Detokenizer, StopStrings, TextStream
from baton.router.token_pieces import TokenPieces
from baton.router.tokenizer import TextProcessor

TOKEN_IDS = st.lists(st.integers(0, 510), max_size=60)


def deltas(text: TextProcessor, token_ids: list[int], *, skip: bool) -> list[str]:
    detokenizer = Detokenizer(text.pieces, skip_special_tokens=skip, is_continuation=False)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


@given(token_ids=TOKEN_IDS, skip=st.booleans())
def test_byte_level_deltas_join_to_the_librarys_decode(
    text: TextProcessor, model_folder: Path, token_ids: list[int], skip: bool
) -> None:
    library = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    expected = library.decode(token_ids, skip_special_tokens=skip)
    assert "".join(deltas(text, token_ids, skip=skip)) == expected
    assert text.decode(token_ids, skip_special_tokens=skip) == expected


@given(
    parts=st.lists(
        st.one_of(st.integers(259, 273), st.integers(0, 2), st.text(min_size=1, max_size=3)), max_size=30
    ),
    skip=st.booleans(),
)
def test_byte_fallback_deltas_join_to_the_librarys_decode(
    sentencepiece: TextProcessor, sentencepiece_folder: Path, parts: list[int | str], skip: bool
) -> None:
    token_ids: list[int] = []
    for part in parts:
        token_ids += [part] if isinstance(part, int) else [3 + byte for byte in part.encode()]
    library = Tokenizer.from_file(str(sentencepiece_folder / "tokenizer.json"))
    assert "".join(deltas(sentencepiece, token_ids, skip=skip)) == library.decode(
        token_ids, skip_special_tokens=skip
    )


@given(token_ids=st.lists(st.integers(0, 280), max_size=60), skip=st.booleans())
def test_byte_fallback_deltas_of_any_bytes_join_to_decode(
    sentencepiece: TextProcessor, token_ids: list[int], skip: bool
) -> None:
    assert "".join(deltas(sentencepiece, token_ids, skip=skip)) == sentencepiece.decode(
        token_ids, skip_special_tokens=skip
    )


def test_invalid_bytes_do_not_spoil_their_neighbours(sentencepiece: TextProcessor) -> None:
    assert sentencepiece.decode([3 + byte for byte in b"\xe4\xb8\xad\xff\xe4\xb8"]) == "中\ufffd\ufffd\ufffd"


@given(content=st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
@example("👩‍👩‍👧🎉東京")
async def test_no_replacement_character_for_an_unfinished_one(text: TextProcessor, content: str) -> None:
    content = content.replace("\ufffd", "")
    token_ids = await text.encode(content, add_special_tokens=False)
    parts = deltas(text, token_ids, skip=False)
    assert not any("\ufffd" in part for part in parts)


def test_a_cut_character_becomes_one_replacement_at_the_end(text: TextProcessor) -> None:
    byte_tokens = [i for i in range(510) if text.pieces[i] == b"\xf0"]
    assert deltas(text, byte_tokens, skip=True) == ["", "\ufffd"]


def test_a_continuation_keeps_its_leading_space(sentencepiece: TextProcessor) -> None:
    token_id = next(i for i in range(274) if sentencepiece.pieces[i] == b" fox")
    assert Detokenizer(sentencepiece.pieces, is_continuation=True).push(token_id) == " fox"
    assert Detokenizer(sentencepiece.pieces, is_continuation=False).push(token_id) == "fox"
    assert sentencepiece.decode([token_id]) == "fox"


def test_ids_beyond_the_tokenizer_stand_for_nothing(text: TextProcessor) -> None:
    assert text.decode([100_000]) == ""


class Chars(TokenPieces):
    """Token i is the i-th of the given strings."""

    def __init__(self, parts: list[str]) -> None:
        super().__init__(Tokenizer(BPE()), {"type": "ByteLevel"}, frozenset())
        self._parts = parts

    def __getitem__(self, token_id: int) -> bytes:
        return self._parts[token_id].encode()


def run(
    parts: list[str], stops: list[str], *, min_tokens: int = 0, include: bool = False
) -> tuple[list[str], str | None]:
    detokenizer = Detokenizer(Chars(parts))
    stream = TextStream(detokenizer, StopStrings(stops), min_tokens=min_tokens, include_stop=include)
    texts = []
    for token_id in range(len(parts)):
        delta = stream.push(token_id, is_last=token_id == len(parts) - 1)
        texts.append(delta.text)
        if delta.stop_string is not None:
            return texts, delta.stop_string
    return texts, None


def reference(content: str, stops: list[str]) -> tuple[str, str | None]:
    """The match that ends first; of those that end together, the longest."""
    matches = [(content.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in content]
    if not matches:
        return content, None
    end, minus_length, stop = min(matches)
    return content[: end + minus_length], stop


AB = st.text(alphabet="abc", max_size=5)


@given(parts=st.lists(AB, min_size=1, max_size=12), stops=st.lists(AB.filter(bool), min_size=1, max_size=4))
@example(["a", "ab"], ["ab", "aab"])
@example(["xa", "b"], ["b", "xab", "ab"])
def test_stop_strings_end_text_alike_whatever_the_chunking(parts: list[str], stops: list[str]) -> None:
    texts, found = run(parts, stops)
    assert ("".join(texts), found) == reference("".join(parts), stops)


@given(parts=st.lists(AB, min_size=1, max_size=12), stops=st.lists(AB.filter(bool), min_size=1, max_size=4))
def test_only_what_may_become_a_stop_string_is_held_back(parts: list[str], stops: list[str]) -> None:
    detokenizer = Detokenizer(Chars(parts))
    stream = TextStream(detokenizer, StopStrings(stops))
    seen = given_out = ""
    for token_id, part in enumerate(parts):
        seen += part
        delta = stream.push(token_id)
        if delta.stop_string is not None:
            return
        given_out += delta.text
        held = max((n for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n])), default=0)
        assert given_out == seen[: len(seen) - held]


@given(
    parts=st.lists(AB.filter(bool), min_size=1, max_size=10),
    stops=st.lists(AB.filter(bool), min_size=1, max_size=3),
    min_tokens=st.integers(0, 12),
)
def test_a_stop_before_min_tokens_is_kept_as_text(
    parts: list[str], stops: list[str], min_tokens: int
) -> None:
    texts, found = run(parts, stops, min_tokens=min_tokens)
    joined = "".join(parts)
    if found is None:
        assert "".join(texts) == joined
    else:
        assert len(texts) >= min_tokens
        assert joined.startswith("".join(texts) + found)


def test_min_tokens_counts_the_token_that_completes_the_stop() -> None:
    assert run(["a", "X", "b", "X", "c"], ["X"], min_tokens=3) == (["a", "X", "b", ""], "X")
    assert run(["a", "X", "b", "X", "c"], ["X"], min_tokens=2) == (["a", ""], "X")


def test_a_stop_string_spans_tokens_and_can_be_included() -> None:
    assert run(["Say ##", "# and", " on"], ["###"]) == (["Say ", ""], "###")
    assert run(["Say ##", "# and", " on"], ["###"], include=True) == (["Say ", "###"], "###")


def test_text_held_back_comes_out_at_the_end() -> None:
    assert run(["ab", "c##"], ["###"]) == (["ab", "c##"], None)


def test_hidden_token_adds_no_text() -> None:
    stream = TextStream(Detokenizer(Chars(["a", "END"])), StopStrings([]))
    assert stream.push(0).text == "a"
    assert stream.push(1, is_hidden=True, is_last=True).text == ""
    assert stream.decoded_chars == 1


@pytest.mark.parametrize("folder", ["model_folder", "sentencepiece_folder"])
def test_every_token_alone_has_the_librarys_text(folder: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(folder)
    library, ours = Tokenizer.from_file(str(path / "tokenizer.json")), TextProcessor.from_folder(path)
    for token_id in range(library.get_vocab_size()):
        assert ours.decode([token_id], skip_special_tokens=False) == library.decode(
            [token_id], skip_special_tokens=False
        )
