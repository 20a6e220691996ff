"""`python -m demo.train`: from the text that ships with Python to a folder that Baton serves.

The stations: read the corpus, train the tokenizer on it, then draw packed batches and learn
from them until the steps or the minutes are used up, then write the folder. A second run
starts from that folder and learns to answer behind long prompts.
"""

import dataclasses
import itertools
import math
import pathlib
import random
import time
import typing

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from demo import chat, corpus, export, tokenizer
from demo.loss import next_token_loss
from demo.model import Llama, Shape
from demo.packing import Packer

_WARM_UP = 0.02

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """When training ends: after `steps`, or after `minutes` when `steps` is None."""

    steps: int | None
    minutes: float

    def progress(self, step: int, elapsed_s: float) -> float:
        """How far training has come, from 0 to 1."""
        return step / self.steps if self.steps else elapsed_s / (60 * self.minutes)


@dataclasses.dataclass(frozen=True, slots=True)
class Course:
    """What one run does: its highest learning rate, and the tokens a row, step by step in turn."""

    peak_lr: float
    row_tokens: tuple[int, ...]
    last_row_tokens: tuple[int, ...]  # in the last quarter


FROM_NOTHING = Course(peak_lr=8e-3, row_tokens=(256,), last_row_tokens=(512,))
LONG_PROMPTS = Course(peak_lr=4e-3, row_tokens=(256, 512, 2048), last_row_tokens=(256, 512, 2048))


def learning_rate(progress: float) -> float:
    """A short warm-up, then half a cosine to zero, as a share of the peak."""
    if progress < _WARM_UP:
        return (progress + 1e-3) / _WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - _WARM_UP) / (1 - _WARM_UP)))


def _optimizers(model: Llama, peak_lr: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices inside layers, AdamW for embedding and norms."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=peak_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@dataclasses.dataclass(slots=True)
class Trainer:
    """The model, its optimizers and the data it draws; `step` learns from one batch."""

    model: Llama
    packer: Packer
    rng: random.Random
    batch_tokens: int
    course: Course
    steps: int = 0
    optimizers: list[torch.optim.Optimizer] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = _optimizers(self.model, self.course.peak_lr)

    def step(self, progress: float) -> float:
        """One update; returns the batch's mean loss in nats a token."""
        turns = self.course.row_tokens if progress < 0.75 else self.course.last_row_tokens
        length = turns[self.steps % len(turns)]
        self.steps += 1
        batch = self.packer.batch(self.rng, self.batch_tokens // length, length)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model(batch.tokens, batch.positions, batch.mask)
        wanted = hidden.flatten(0, 1)[batch.targets]
        loss = next_token_loss(wanted, self.model.embed_tokens.weight, batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.course.peak_lr * learning_rate(progress)
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()


def run(trainer: Trainer, budget: Budget, console: Console) -> float:
    """Train until the budget is used up; returns the smoothed loss at the end."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn(
            "step {task.fields[step]}  loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"
        ),
        TimeRemainingColumn(),
    )
    start, step, smooth = time.monotonic(), 0, math.log(trainer.model.shape.vocab_size)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=1.0, step=0, loss=smooth, speed=0.0)
        while (progress := budget.progress(step, time.monotonic() - start)) < 1.0:
            smooth += (trainer.step(progress) - smooth) * max(0.02, 1 / (step + 1))
            step += 1
            speed = step * trainer.batch_tokens / (time.monotonic() - start)
            bar.update(task, completed=progress, step=step, loss=smooth, speed=speed)
            if step % 100 == 0 and not console.is_terminal:
                console.print(f"step {step}: loss {smooth:.3f}, {speed:,.0f} tokens/s, {progress:.0%}")
        bar.update(task, completed=1.0)
    console.print(f"{step} steps, {step * trainer.batch_tokens:,} tokens, loss {smooth:.3f} nats a token")
    return smooth


@app.command()
def main(
    steps: typing.Annotated[
        int | None,
        typer.Option(help="Steps to train; the result is then exact by seed. Overrides --minutes.", min=1),
    ] = None,
    minutes: typing.Annotated[
        float, typer.Option(help="How long to train when --steps is not given.", min=0.1)
    ] = 35,
    seed: typing.Annotated[int, typer.Option(help="Seed of the weights and of the order of the text.")] = 1,
    threads: typing.Annotated[int, typer.Option(help="Processor threads to use.", min=1)] = 2,
    batch_tokens: typing.Annotated[
        int, typer.Option(help="Tokens a step; a multiple of 2048.", min=2048)
    ] = 4096,
    start: typing.Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Folder of a model trained before: go on from it, with long prompts among the short."
        ),
    ] = None,
    out: typing.Annotated[
        pathlib.Path, typer.Option(help="Folder to write; files of a model that is there are replaced.")
    ] = pathlib.Path("baton/demo_model"),
) -> None:
    """Train the demo model from the documentation that ships with Python.

    Reads docstrings, help topics and licence texts of the running Python (and the licences
    in /usr/share/common-licenses where a system has them), trains a tokenizer and a Llama of
    2.7 million parameters on one processor, and writes a model folder that `baton up` serves.

    Two minutes give English words, ten give sentences, half an hour gives good answers:

        python -m demo.train --minutes 2 --out /tmp/demo-model

    A second, short run makes it answer behind prompts of hundreds of tokens, too:

        python -m demo.train --minutes 5 --start /tmp/demo-model --out /tmp/demo-model
    """
    console = Console()
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    console.print("reading the documentation that ships with Python ...")
    docs, texts = corpus.docs(), corpus.texts()
    chats, shape = chat.Conversations(docs, texts), Shape()
    if start:
        model, vocabulary = export.read_folder(shape, start)
    else:
        vocabulary = tokenizer.train([*itertools.chain(*texts), *chats.answers()], shape.vocab_size)
        model = Llama(shape)
    packer = Packer(vocabulary, texts, chats, shape.max_position_embeddings)
    console.print(f"{packer.text_tokens:,} tokens of text, {len(chats):,} questions with answers")
    course = LONG_PROMPTS if start else FROM_NOTHING
    trainer = Trainer(model, packer, random.Random(seed), batch_tokens, course)  # noqa: S311
    run(trainer, Budget(steps, minutes), console)
    size = export.write_folder(trainer.model, vocabulary, out)
    console.print(f"wrote {out}: {size:,} bytes")


if __name__ == "__main__":
    app()
