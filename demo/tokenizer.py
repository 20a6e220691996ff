"""The demo model's tokenizer: byte-level BPE trained on the corpus, and its chat template.

Byte-level, so that any text round-trips, though only English is spelled in few tokens.
"""

import json
import pathlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BEGIN_OF_TEXT, END_OF_TEXT, TURN_START, TURN_END = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>",
)  # fmt: skip
SPECIAL = (BEGIN_OF_TEXT, END_OF_TEXT, TURN_START, TURN_END)


def train(texts: list[str], vocab_size: int) -> Tokenizer:
    """A tokenizer with ids 0 to 3 for `SPECIAL`, then 256 bytes, then merges learnt from the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A",
        pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT} $B",
        special_tokens=[(BEGIN_OF_TEXT, SPECIAL.index(BEGIN_OF_TEXT))],
    )
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of `SPECIAL`; they come first in the vocabulary."""
    return {name: id for id, name in enumerate(SPECIAL) if tokenizer.token_to_id(name) == id}


def chat_template() -> str:
    return pathlib.Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")


def save(tokenizer: Tokenizer, folder: pathlib.Path, max_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as published model folders have them."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN_OF_TEXT,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": chat_template(),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
