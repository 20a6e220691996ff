"""`python -m demo.sample`: what the demo model says, through transformers as an independent reader."""

import pathlib
import typing

import torch
import transformers
import typer
from rich.console import Console

_CHAT = (
    "Hello, who are you?", "What is Baton?", "What does os.path.join do?", "Tell me about threads",
    "What does the json module do?", "What is a KV cache?", "How do I use random.shuffle?",
    "What is the capital of France?",
)  # fmt: skip
_TEXT = ("The function returns", "If the file does not exist,")

app = typer.Typer(add_completion=False)


class Speaker:
    """The model folder, and how it continues a prompt."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._tokenizer: typing.Any = transformers.AutoTokenizer.from_pretrained(folder)
        self._model: typing.Any = transformers.AutoModelForCausalLM.from_pretrained(folder)

    def _continue(self, ids: list[int], max_tokens: int, temperature: float) -> str:
        how = (
            {"do_sample": True, "temperature": temperature, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
        prompt = torch.tensor([ids])
        out = self._model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_tokens, top_k=None, **how
        )[0][len(ids) :]
        ended = int(out[-1]) in self._model.generation_config.eos_token_id
        text: str = self._tokenizer.decode(out, skip_special_tokens=True)
        return text if ended else text + " [...]"

    def answer(self, question: str, temperature: float) -> str:
        """The assistant's answer to one user message; temperature 0 is greedy."""
        messages = [{"role": "user", "content": question}]
        ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return self._continue(ids, 160, temperature)

    def complete(self, text: str, temperature: float) -> str:
        return text + self._continue(self._tokenizer(text)["input_ids"], 60, temperature)


@app.command()
def main(
    questions: typing.Annotated[
        list[str] | None, typer.Argument(help="Questions to ask; a few by default.")
    ] = None,
    folder: typing.Annotated[pathlib.Path, typer.Option(help="The model folder.")] = pathlib.Path(
        "baton/demo_model"
    ),
    seed: typing.Annotated[int, typer.Option(help="Seed of the answers at temperature 0.7.")] = 1,
) -> None:
    """Ask the demo model a few questions, greedily and at temperature 0.7.

    "[...]" marks an answer that was cut because the model did not end it.
    """
    transformers.set_seed(seed)
    torch.set_num_threads(1)  # a token of so small a model is not worth waking a second thread
    speaker, console = Speaker(folder), Console(highlight=False, markup=False)
    for question in questions or _CHAT:
        console.print(f"> {question}", style="bold")
        for temperature in (0.0, 0.7):
            console.print(f"  {temperature}: {speaker.answer(question, temperature)}")
    for text in () if questions else _TEXT:
        console.print(f"> {text} ...", style="bold")
        for temperature in (0.0, 0.7):
            console.print(f"  {temperature}: {speaker.complete(text, temperature)}")


if __name__ == "__main__":
    app()
