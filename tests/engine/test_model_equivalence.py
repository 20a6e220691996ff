"""Every family and variant computes what Hugging Face transformers computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_folders
import pytest
import torch
from hand_driven import HandDriven
from model_folders import prompt_ids
from oracle import Reference, greedy
from transformers import AutoModelForCausalLM

from baton.engine.batch import Chunk
from baton.request import Token

Folders = Callable[[str], Path]

BLOCK = 16
PROMPT_LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 250, 1000)
GENERATED = 16


def oracle(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A fresh model: transformers' dynamic rope remembers the longest sequence that it has seen."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def oracle_logits(folder: Path, prompt: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """float32 [prompt tokens, vocab_size]."""
    with torch.inference_mode():
        logits: torch.Tensor = oracle(folder, dtype)(torch.tensor([prompt])).logits[0]
    return logits.float()


def assert_same(tokens: list[Token], expected: Reference) -> None:
    assert [token.token_id for token in tokens] == expected.token_ids
    for token, row in zip(tokens, expected.logprobs, strict=True):
        assert token.logprob == pytest.approx(row[token.token_id].item(), abs=1e-4)
        for token_id, logprob in token.top_logprobs:
            assert logprob == pytest.approx(row[token_id].item(), abs=1e-4)


@pytest.mark.parametrize("name", model_folders.VARIANTS)
def test_logits_of_a_whole_prompt_equal_those_of_transformers(model_folder: Folders, name: str) -> None:
    prompt = prompt_ids(700)
    engine = HandDriven(model_folder(name))
    logits = engine.logits(engine.sequence(prompt), chunk_tokens=700)
    torch.testing.assert_close(logits, oracle_logits(model_folder(name), prompt), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", model_folders.VARIANTS)
def test_logits_do_not_depend_on_how_the_prompt_is_chunked(model_folder: Folders, name: str) -> None:
    prompt = prompt_ids(300)
    engine = HandDriven(model_folder(name))
    whole = engine.logits(engine.sequence(prompt), chunk_tokens=300)
    for chunk_tokens in (1, 37, BLOCK * 4):
        chunked = engine.logits(engine.sequence(prompt), chunk_tokens)
        torch.testing.assert_close(chunked, whole, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", model_folders.VARIANTS)
def test_greedy_tokens_of_a_mixed_batch_equal_those_of_transformers(model_folder: Folders, name: str) -> None:
    engine = HandDriven(model_folder(name), block_size=BLOCK)
    prompts = [prompt_ids(length) for length in PROMPT_LENGTHS]
    sequences = [engine.sequence(prompt) for prompt in prompts]
    outputs = [[engine.prefill(sequence, chunk_tokens=200)] for sequence in sequences]
    for _ in range(GENERATED - 1):
        for output, token in zip(outputs, engine.decode(sequences), strict=True):
            output.append(token)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert_same(output, greedy(model_folder(name), tuple(prompt), GENERATED))


def test_dynamic_rope_follows_a_sequence_that_grows_past_the_models_length(model_folder: Folders) -> None:
    folder = model_folder("llama-dynamic")
    engine = HandDriven(folder)
    prompt = prompt_ids(250)
    sequence = engine.sequence(prompt)
    output = [engine.prefill(sequence, chunk_tokens=250)]
    output += [engine.decode([sequence])[0] for _ in range(31)]
    assert engine.config.rope.max_position_embeddings == 256
    assert_same(output, greedy(folder, tuple(prompt), 32))


def test_a_step_mixes_decode_and_prefill_in_any_order(model_folder: Folders) -> None:
    folder = model_folder("mistral-window")
    engine = HandDriven(folder)
    prompts = [prompt_ids(length, seed=1) for length in (90, 130, 5)]
    first, second, third = [engine.sequence(prompt) for prompt in prompts]
    outputs = [[engine.prefill(first, 64)], [], [engine.prefill(third, 64)]]
    mixed = engine.step([Chunk(first, 1, (first,)), Chunk(second, 100), Chunk(third, 1, (third,))])
    outputs[0].append(mixed[0])
    outputs[2].append(mixed[1])
    for output, token in zip(
        outputs,
        engine.step([Chunk(first, 1, (first,)), Chunk(second, 30, (second,)), Chunk(third, 1, (third,))]),
        strict=True,
    ):
        output.append(token)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert_same(output, greedy(folder, tuple(prompt), len(output)))


def test_samplers_that_share_a_prompt_share_its_logits(model_folder: Folders) -> None:
    engine = HandDriven(model_folder("llama"))
    prompt = prompt_ids(40)
    parent, sibling, other = engine.sequence(prompt), engine.sequence(prompt), engine.sequence(prompt_ids(7))
    tokens = engine.step([Chunk(parent, 40, (parent, sibling)), Chunk(other, 7, (other,))])
    assert tokens[0] == tokens[1]
    assert tokens[0].token_id == greedy(model_folder("llama"), tuple(prompt), 1).token_ids[0]
    assert tokens[2].token_id == greedy(model_folder("llama"), tuple(prompt_ids(7)), 1).token_ids[0]


def test_a_step_without_samplers_draws_nothing(model_folder: Folders) -> None:
    engine = HandDriven(model_folder("llama"))
    assert engine.step([Chunk(engine.sequence(prompt_ids(20)), 10)]) == []


def test_sharded_and_single_files_hold_the_same_model(model_folder: Folders, tmp_path: Path) -> None:
    sharded = model_folder("llama-sharded")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    oracle(sharded).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    one, other = HandDriven(sharded), HandDriven(tmp_path)
    prompt = prompt_ids(50)
    torch.testing.assert_close(
        one.logits(one.sequence(prompt), 50), other.logits(other.sequence(prompt), 50), atol=5e-5, rtol=0
    )
    assert one.config.fingerprint == other.config.fingerprint


@pytest.mark.parametrize("name", ["llama-llama3", "mistral-window", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_transformers(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    folder = model_folders.make_folder(name, tmp_path, dtype)
    engine = HandDriven(folder)
    assert engine.config.dtype == engine.pool.kv.dtype == dtype
    prompt = prompt_ids(200)
    logits = engine.logits(engine.sequence(prompt), 64)
    exact = oracle_logits(folder, prompt)
    noise = (oracle_logits(folder, prompt, dtype) - exact).square().mean().sqrt()
    assert (logits - exact).square().mean().sqrt() < 1.25 * noise


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "qwen2-window"])
def test_folders_of_transformers_4_mean_the_same(tmp_path: Path, model_folder: Folders, name: str) -> None:
    folder = model_folders.make_folder(name, tmp_path)
    model_folders.to_transformers_4(folder)
    old, new = HandDriven(folder), HandDriven(model_folder(name))
    assert old.config.dtype == torch.float32
    prompt = prompt_ids(300)
    assert torch.equal(old.logits(old.sequence(prompt), 300), new.logits(new.sequence(prompt), 300))
