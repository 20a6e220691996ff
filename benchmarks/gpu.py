"""Measures the engine on a GPU against that GPU's own memory bandwidth and matrix rate.

`python benchmarks/gpu.py --help` explains itself with examples; `benchmarks/gpu.sh` runs all that needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rows
import torch
from random_model import save_weights
from rich.console import Console
from rows import Row

from baton.engine.batch import Chunk
from baton.engine.engine import Engine
from baton.engine.engine_config import EngineConfig
from baton.engine.sequence import Sequence
from baton.engine.weights import weight_count
from baton.request import GenerationRequest, SamplingParams

EXAMPLES = """
examples:
  python benchmarks/gpu.py --json gpu.json
  python benchmarks/gpu.py --shape tiny --device cpu     # tries the script itself, without a GPU

what is measured, in bfloat16 with random weights:
  decode: a step of 64 sequences behind 2048 tokens each, against the time in which the GPU copies as many bytes
  as the step has to read (weights, and the keys and values of all contexts); the same with one step in flight
  prefill: one prompt of 8192 tokens, against the rate of a plain square matrix product
  batch: the whole of 64 prompts and their answers, against transformers' continuous batching, if installed
"""
SEED = 0
WEIGHT_BYTES = 2


@dataclass(frozen=True)
class Shape:
    """A Llama, and the work it is given."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    batch: int
    context: int
    prompt: int
    output: int
    matrix: int
    copy_bytes: int

    @property
    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "intermediate_size": self.mlp,
            "vocab_size": self.vocab,
            "tie_word_embeddings": False,
            "max_position_embeddings": 16384,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 0,
        }


SHAPES = {
    "8b": Shape(32, 4096, 32, 8, 14336, 128256, 64, 2048, 8192, 64, 8192, 4 << 30),
    "tiny": Shape(2, 128, 4, 2, 256, 512, 4, 64, 96, 4, 256, 1 << 22),
}


class Bench:
    def __init__(self, shape: Shape, folder: Path, device: str) -> None:
        self._shape = shape
        self._device = torch.device(device)
        blocks = max(shape.batch * (shape.context + shape.output + 32), shape.prompt + 32) // 16 + 1
        self._engine = Engine(EngineConfig(folder, device=device, kv_blocks=blocks, attention="triton"))

    def decode_s(self, steps: int = 20) -> float:
        sequences = self._prefilled(self._shape.batch, self._shape.context, steps + 4)
        seconds = [self._step([Chunk(s, 1, (s,)) for s in sequences]) for _ in range(steps + 3)][3:]
        self._free(sequences)
        return statistics.median(seconds)

    def overlapped_s(self, steps: int = 20) -> float:
        """A step of many that are each launched before the one in flight has landed."""
        sequences = self._prefilled(self._shape.batch, self._shape.context, steps + 4)
        chunks = [Chunk(s, 1, (s,)) for s in sequences]
        self._engine.launch(chunks)
        seconds = timed(self._device, lambda: self._run_ahead(chunks, steps))
        self._engine.land()
        self._free(sequences)
        return seconds / steps

    def _run_ahead(self, chunks: list[Chunk], steps: int) -> None:
        for _ in range(steps):
            self._engine.launch(chunks)
            self._engine.land()

    def prefill_s(self, repetitions: int = 5) -> float:
        seconds = []
        for _ in range(repetitions + 1):
            [sequence] = self._sequences(1, self._shape.prompt, 1)
            seconds.append(self._step([Chunk(sequence, self._shape.prompt, (sequence,))]))
            self._free([sequence])
        return statistics.median(seconds[1:])

    def batch_s(self) -> float:
        """All prompts and answers, from nothing to the last token."""
        start = time.perf_counter()
        sequences = self._prefilled(self._shape.batch, self._shape.context, self._shape.output)
        for _ in range(self._shape.output - 1):
            self._step([Chunk(s, 1, (s,)) for s in sequences])
        self._free(sequences)
        return time.perf_counter() - start

    def _prefilled(self, batch: int, tokens: int, output: int) -> list[Sequence]:
        sequences = self._sequences(batch, tokens, output)
        for each in sequences:
            self._step([Chunk(each, tokens, (each,))])
        return sequences

    def _sequences(self, batch: int, tokens: int, output: int) -> list[Sequence]:
        sampling = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        result = []
        for number, ids in enumerate(prompts(self._shape, batch, tokens)):
            request = GenerationRequest(request_id=str(number), token_ids=tuple(ids), sampling=sampling)
            result.append(self._engine.new_sequence(request, 0))
            self._engine.grow(result[-1], tokens + output + 1)
        return result

    def _step(self, chunks: list[Chunk]) -> float:
        return timed(self._device, lambda: self._engine.run(chunks))

    def _free(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._engine.free(sequence)
        self._engine.blocks.clear_cache()


def prompts(shape: Shape, batch: int, tokens: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(SEED)
    ids: list[list[int]] = torch.randint(shape.vocab, (batch, tokens), generator=generator).tolist()
    return ids


def make_folder(folder: Path, shape: Shape, device: str) -> int:
    """Writes a model folder with random weights; returns the bytes that a decode step reads of them."""
    (folder / "config.json").write_text(json.dumps(shape.config))
    weights = weight_count(save_weights(folder, device))
    return WEIGHT_BYTES * (
        weights - shape.vocab * shape.hidden
    )  # but for the embedding, of which it reads rows


def timed(device: torch.device, work: Callable[[], object]) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_rate(shape: Shape, device: torch.device) -> float:
    """Bytes read or written a second by a plain copy."""
    source = torch.ones(shape.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = [timed(device, lambda: target.copy_(source)) for _ in range(12)][2:]
    return 2 * shape.copy_bytes / statistics.median(seconds)


def matrix_rate(shape: Shape, device: torch.device) -> float:
    """Operations a second of a square product in bfloat16."""
    a = torch.randn(shape.matrix, shape.matrix, device=device).bfloat16()
    b = torch.randn(shape.matrix, shape.matrix, device=device).bfloat16()
    seconds = [timed(device, lambda: a @ b) for _ in range(12)][2:]
    return float(2 * shape.matrix**3 / statistics.median(seconds))


def transformers_batch_s(shape: Shape, folder: Path, device: str) -> float | None:
    """The same batch by transformers' own continuous batching; None where it is not installed."""
    try:
        from transformers import AutoModelForCausalLM, GenerationConfig
    except ImportError:
        return None
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    model = model.to(device)
    inputs = prompts(shape, shape.batch, shape.context)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=shape.output, do_sample=False, eos_token_id=-1
    )
    model.generate_batch(inputs[:2], generation_config=config)
    return timed(torch.device(device), lambda: model.generate_batch(inputs, generation_config=config))


def figures(shape: Shape, folder: Path, device: str, console: Console) -> Iterator[Row]:
    console.print("writing random weights")
    weight_bytes = make_folder(folder, shape, device)
    console.print("measuring the device")
    bytes_a_s, operations_a_s = (
        copy_rate(shape, torch.device(device)),
        matrix_rate(shape, torch.device(device)),
    )
    console.print(f"copies {bytes_a_s / 1e9:,.0f} GB/s, multiplies {operations_a_s / 1e12:,.1f} TFLOP/s")
    bench = Bench(shape, folder, device)
    head_dim = shape.hidden // shape.heads
    kv_bytes = shape.batch * shape.context * 2 * shape.layers * shape.kv_heads * head_dim * 2
    roof_s = (weight_bytes + kv_bytes) / bytes_a_s
    for suffix, step_s in (("", bench.decode_s()), (", one step in flight", bench.overlapped_s())):
        yield Row(
            name=f"decode {shape.batch} × {shape.context}{suffix}",
            value=step_s * 1e3,
            unit="ms",
            peer="bytes at the copy rate",
            peer_value=roof_s * 1e3,
            ratio=roof_s / step_s,
            target=0.8,
        )
    operations = 2 * shape.prompt * (weight_bytes // WEIGHT_BYTES - shape.vocab * shape.hidden)
    operations += 2 * shape.prompt**2 * shape.layers * shape.heads * head_dim  # causal: half of all pairs
    prompt_s = bench.prefill_s()
    yield Row(
        name=f"prefill 1 × {shape.prompt}",
        value=operations / prompt_s / 1e12,
        unit="TFLOP/s",
        peer="square product",
        peer_value=operations_a_s / 1e12,
        ratio=operations / prompt_s / operations_a_s,
        target=0.55,
    )
    mine_s = bench.batch_s()
    theirs_s = transformers_batch_s(shape, folder, device)
    if theirs_s is None:
        console.print("transformers is not installed here: not compared")
    yield Row(
        name=f"batch {shape.batch} × {shape.context} + {shape.output}",
        value=mine_s,
        unit="s",
        peer=None if theirs_s is None else "transformers",
        peer_value=theirs_s,
        ratio=None if theirs_s is None else theirs_s / mine_s,
    )


def main() -> None:
    options = parser().parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here; --shape tiny --device cpu tries the script itself")
    console = Console()
    with TemporaryDirectory(prefix="baton-gpu-") as folder:
        found = list(figures(SHAPES[options.shape], Path(folder), options.device, console))
    rows.publish(found, f"engine on {options.device}, shape {options.shape}", options.json)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Measures decode and prefill on a GPU against what its memory and its matrix units give.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--shape", choices=SHAPES, default="8b", help="of model and work (default: 8b)")
    add("--device", default="cuda", metavar="DEVICE", help="cuda, cuda:N or cpu (default: cuda)")
    add("--json", type=Path, metavar="FILE", help="writes the rows there as well")
    return result


if __name__ == "__main__":
    main()
