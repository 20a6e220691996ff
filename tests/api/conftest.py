"""Model folders made on the spot: a byte-level BPE as Llama 3 and Qwen use, and a SentencePiece-style one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import httpx
import pytest
from live_server import serving
from openai import AsyncOpenAI
from scripted_backend import ScriptedBackend
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from baton.router.api.app import create_app
from baton.router.api.settings import ApiSettings
from baton.router.tokenizer import TextProcessor

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'developer', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('unknown role ' + message['role']) }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if style is defined %}{{ 'style: ' + style|tojson + '\\n' }}{% endif %}
{%- endif %}
"""

CORPUS = [
    "The quick brown fox jumps over the lazy dog. " * 4,
    "def main(argv):\n    return 0\n" * 4,
    "Grüße aus München, naïve café, 東京 と 大阪, привет мир 👩‍👩‍👧 🎉🎉",
    "Stop here. Stop there. STOP! ### END ###",
]

SPECIAL = ["<|begin|>", "<|im_start|>", "<|im_end|>"]


def build_byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return tokenizer


def build_sentencepiece() -> Tokenizer:
    words = ["▁the", "▁fox", "▁", "a", "b", "c", "dog", "é", "▁東", "京", ".", "\n", "▁▁", "Stop", "▁here"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), *words]:
        vocab[token] = len(vocab)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[], byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, config: Mapping[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE with a ChatML-like template."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": {"content": "<|im_end|>", "__type": "AddedToken"},
        "chat_template": CHAT_TEMPLATE,
    }
    return write_folder(tmp_path_factory.mktemp("byte_level"), build_byte_level(), config)


@pytest.fixture(scope="session")
def text(model_folder: Path) -> TextProcessor:
    return TextProcessor.from_folder(model_folder)


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SentencePiece-style BPE with byte fallback and without a chat template."""
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    return write_folder(tmp_path_factory.mktemp("sentencepiece"), build_sentencepiece(), config)


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_folder: Path) -> TextProcessor:
    return TextProcessor.from_folder(sentencepiece_folder)


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
async def url(backend: ScriptedBackend, text: TextProcessor) -> AsyncIterator[str]:
    """A real server on a real socket; when it is gone, nothing of the backend is left open."""
    async with serving(create_app(backend, text, ApiSettings(metrics=lambda: b"up 1\n"))) as address:
        yield address
    assert backend.open == 0


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=20) as http_client:
        yield http_client


@pytest.fixture
async def says(backend: ScriptedBackend, text: TextProcessor) -> Callable[[str], Awaitable[None]]:
    """Sets what greedy choices say."""

    async def set_script(content: str) -> None:
        backend.script = await text.encode(content, add_special_tokens=False)

    return set_script


@pytest.fixture
async def direct(backend: ScriptedBackend, text: TextProcessor) -> AsyncIterator[httpx.AsyncClient]:
    """The application without a server; a bug of ours raises in the test."""
    transport = httpx.ASGITransport(create_app(backend, text, ApiSettings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://baton", timeout=20) as http_client:
        yield http_client
    assert backend.open == 0
