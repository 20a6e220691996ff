"""Model folders as they are published: what is read, what is refused, and how long a text must become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baton.errors import ModelFolderError
from baton.router.tokenizer import TextProcessor


def changed(folder: Path, source: Path, **parts: Any) -> Path:
    content = json.loads((source / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | parts))
    return folder


async def test_encoding_equals_the_librarys(text: TextProcessor, model_folder: Path) -> None:
    library = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    for content in ["", "The fox", "<|im_start|>user", "東京 " * 3000]:
        for add_special_tokens in (True, False):
            assert await text.encode(content, add_special_tokens=add_special_tokens) == (
                library.encode(content, add_special_tokens=add_special_tokens).ids
            )


async def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path, model_folder: Path) -> None:
    library = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    library.enable_truncation(4)
    library.enable_padding(length=8)
    library.save(str(tmp_path / "tokenizer.json"))
    token_ids = await TextProcessor.from_folder(tmp_path).encode(
        "The quick brown fox" * 5, add_special_tokens=False
    )
    assert len(token_ids) > 8


@pytest.mark.parametrize("folder", ["model_folder", "sentencepiece_folder"])
def test_fewest_tokens_is_a_lower_bound(folder: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(folder)
    processor = TextProcessor.from_folder(path)
    library = Tokenizer.from_file(str(path / "tokenizer.json"))

    @given(content=st.text(max_size=200))
    def check(content: str) -> None:
        assert processor.fewest_tokens(content) <= len(library.encode(content, add_special_tokens=False).ids)

    check()
    assert processor.fewest_tokens("x" * 10_000) > 50


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "ab"}, "content": ""}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
    ],
)
def test_no_bound_where_text_may_shrink_without_end(
    parts: dict[str, Any], tmp_path: Path, model_folder: Path
) -> None:
    processor = TextProcessor.from_folder(changed(tmp_path, model_folder, **parts))
    assert processor.fewest_tokens("x" * 10_000) == 0


def test_tokens_named_in_the_configuration_are_special(tmp_path: Path, model_folder: Path) -> None:
    content = json.loads((model_folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|absent|>"})
    )
    processor = TextProcessor.from_folder(tmp_path)
    assert processor.decode([0, 2], skip_special_tokens=True) == "<|begin|>"
    assert processor.vocab_size == len(content["model"]["vocab"]) + 1


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json: the file is missing"):
        TextProcessor.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\x00"])
def test_malformed_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json"):
        TextProcessor.from_folder(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_malformed_configuration_is_named(tmp_path: Path, model_folder: Path, content: bytes) -> None:
    changed(tmp_path, model_folder)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"tokenizer_config\.json"):
        TextProcessor.from_folder(tmp_path)


def test_template_that_is_no_text_is_named(tmp_path: Path, model_folder: Path) -> None:
    changed(tmp_path, model_folder)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 3}')
    with pytest.raises(ModelFolderError, match="chat_template"):
        TextProcessor.from_folder(tmp_path)


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        {
            "type": "Sequence",
            "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}],
        },
    ],
)
def test_unsupported_decoder_is_named(tmp_path: Path, model_folder: Path, decoder: dict[str, Any]) -> None:
    with pytest.raises(ModelFolderError, match=r"decoder .* is not supported"):
        TextProcessor.from_folder(changed(tmp_path, model_folder, decoder=decoder))


def test_tokenizer_without_a_decoder_joins_words_by_spaces(tmp_path: Path, model_folder: Path) -> None:
    processor = TextProcessor.from_folder(changed(tmp_path, model_folder, decoder=None))
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    token_ids = [1, 300, 45, 2, 301]
    for skip in (True, False):
        assert processor.decode(token_ids, skip_special_tokens=skip) == library.decode(
            token_ids, skip_special_tokens=skip
        )
