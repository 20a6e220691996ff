"""The limits that depend on the model and on the configuration, and the sampling parameters that pass them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from baton.errors import ModelNotFound
from baton.request import SamplingParams
from baton.router.api.backend import ServedModel
from baton.router.api.errors import ContextLengthExceeded, invalid, shown
from baton.router.api.schema import GenerationBody
from baton.router.api.settings import ApiSettings
from baton.router.tokenizer import TextProcessor

# Below it, dividing logits by the temperature overflows; vLLM draws the same line.
_MIN_TEMPERATURE = 0.01


@dataclass(frozen=True, slots=True)
class OutputLength:
    """`max_tokens` as the client asked for it, under whatever name; None where it did not."""

    field: str
    tokens: int | None
    default: int | None = None
    """None: all that the context has left."""


class Limits:
    """Checks of one deployment. Every method raises InvalidRequest, naming field, value and limit."""

    def __init__(self, model: ServedModel, settings: ApiSettings) -> None:
        self._model = model
        self._settings = settings

    def check_model(self, name: str | None) -> str:
        """The name to answer under.

        Raises:
            ModelNotFound: the fleet serves no model of that name.
        """
        if name is None:
            return self._model.model_id
        if name not in self._model.names:
            served = ", ".join(self._model.names)
            raise ModelNotFound(f"model: {shown(name)} is not served here; there is {served}", field="model")
        return name

    def check_sequences(self, prompts: int, n: int) -> None:
        settings = self._settings
        if n > settings.max_choices:
            raise invalid("n", f"at most {settings.max_choices} choices, not {n}")
        if prompts > settings.max_prompts:
            raise invalid("prompt", f"at most {settings.max_prompts} prompts, not {prompts}")
        if prompts * n > settings.max_sequences:
            limit = f"at most {settings.max_sequences} sequences"
            raise invalid("n", f"{limit} (prompts times n), not {prompts} x {n}")

    def check_text(self, text: str, processor: TextProcessor, field: str) -> None:
        """Refuses a text before the work of encoding it, where its length alone shows that it cannot fit."""
        if (fewest := processor.fewest_tokens(text)) >= self._model.max_model_tokens:
            raise self._too_long(field, f"at least {fewest}")

    def check_prompt(self, token_ids: Sequence[int], field: str) -> None:
        if not token_ids:
            raise invalid(field, "the prompt must have at least 1 token, not 0")
        if len(token_ids) >= self._model.max_model_tokens:
            raise self._too_long(field, str(len(token_ids)))
        self.check_token_ids(token_ids, field)

    def check_token_ids(self, token_ids: Sequence[int], field: str) -> None:
        if token_ids and max(token_ids) >= self._model.vocab_size:
            wrong = next(i for i, token_id in enumerate(token_ids) if token_id >= self._model.vocab_size)
            raise self._outside_vocabulary(f"{field}.{wrong}", token_ids[wrong])

    def sampling(
        self, body: GenerationBody, prompt_tokens: int, length: OutputLength, logprobs: int | None
    ) -> SamplingParams:
        """The sampling parameters of one prompt; the model's defaults stand in for what was left out."""
        defaults = self._model.sampling_defaults
        temperature = defaults.temperature if body.temperature is None else body.temperature
        top_k = defaults.top_k if body.top_k is None else body.top_k
        max_tokens = self._max_tokens(prompt_tokens, length)
        if body.min_tokens > max_tokens:
            raise invalid("min_tokens", f"at most max_tokens ({max_tokens}), not {body.min_tokens}")
        seed = secrets.randbits(64) if body.seed is None else body.seed
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            temperature=max(temperature, _MIN_TEMPERATURE) if temperature else 0.0,
            top_p=defaults.top_p if body.top_p is None else body.top_p,
            top_k=max(top_k, 0),
            min_p=defaults.min_p if body.min_p is None else body.min_p,
            repetition_penalty=(
                defaults.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty
            ),
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=self._logit_bias(body.logit_bias),
            seed=seed & 0xFFFF_FFFF_FFFF_FFFF,  # the two's complement of a negative one
            logprobs=logprobs,
            stop_token_ids=self._stop_token_ids(body.stop_token_ids),
            ignore_eos=body.ignore_eos,
        )

    def logprobs(self, count: int, field: str) -> int:
        limit = min(self._settings.max_logprobs, self._model.vocab_size)
        if count > limit:
            raise invalid(field, f"at most {limit}, not {count}")
        return count

    def stop_strings(self, stop: str | list[str]) -> list[str]:
        strings = [stop] if isinstance(stop, str) else stop
        settings = self._settings
        if len(strings) > settings.max_stop_strings:
            raise invalid("stop", f"at most {settings.max_stop_strings} strings, not {len(strings)}")
        for position, string in enumerate(strings):
            if len(string) > settings.max_stop_string_chars:
                field = "stop" if isinstance(stop, str) else f"stop.{position}"
                raise invalid(
                    field, f"at most {settings.max_stop_string_chars} characters, not {len(string)}"
                )
        return strings

    def _max_tokens(self, prompt_tokens: int, length: OutputLength) -> int:
        room = self._model.max_model_tokens - prompt_tokens
        if length.tokens is None:
            return room if length.default is None else min(length.default, room)
        if length.tokens > room:
            raise ContextLengthExceeded(
                f"{length.field}: this model's maximum context length is {self._model.max_model_tokens} tokens, "
                f"and {prompt_tokens} of the prompt leave {room}, not {length.tokens}",
                field=length.field,
            )
        return length.tokens

    def _logit_bias(self, biases: dict[str, float]) -> tuple[tuple[int, float], ...]:
        if len(biases) > self._settings.max_logit_bias_entries:
            limit = self._settings.max_logit_bias_entries
            raise invalid("logit_bias", f"at most {limit} entries, not {len(biases)}")
        checked: dict[int, float] = {}
        for name, bias in biases.items():
            if not (name.isascii() and name.isdigit() and len(name) <= 10):
                raise invalid("logit_bias", f"keys are token ids in decimal digits, not {shown(name)}")
            if (token_id := int(name)) >= self._model.vocab_size:
                raise self._outside_vocabulary(f"logit_bias.{name}", token_id)
            checked[token_id] = bias
        return tuple(checked.items())

    def _stop_token_ids(self, token_ids: list[int]) -> tuple[int, ...]:
        if len(token_ids) > self._settings.max_stop_token_ids:
            limit = self._settings.max_stop_token_ids
            raise invalid("stop_token_ids", f"at most {limit} ids, not {len(token_ids)}")
        self.check_token_ids(token_ids, "stop_token_ids")
        return tuple(token_ids)

    def _too_long(self, field: str, tokens: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"{field}: this model's maximum context length is {self._model.max_model_tokens} tokens, output "
            f"included, but the prompt has {tokens}",
            field=field,
        )

    def _outside_vocabulary(self, field: str, token_id: int) -> Exception:
        return invalid(field, f"token ids are below {self._model.vocab_size}, not {token_id}")
