"""Fields of OpenAI's API and of vLLM's that would change the result and that Baton does not act on.

Ignoring one would answer another question than the client asked, so each is refused unless its value says
that the feature is off.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from baton.router.api.fields import Body, only


class UnsupportedInGeneration(Body):
    """Of both endpoints."""

    response_format: Annotated[object, AfterValidator(only({"type": "text"}))] = None
    structured_outputs: Annotated[object, AfterValidator(only())] = None
    guided_json: Annotated[object, AfterValidator(only())] = None
    guided_regex: Annotated[object, AfterValidator(only())] = None
    guided_choice: Annotated[object, AfterValidator(only())] = None
    guided_grammar: Annotated[object, AfterValidator(only())] = None
    use_beam_search: Annotated[object, AfterValidator(only(False))] = None
    prompt_logprobs: Annotated[object, AfterValidator(only())] = None
    allowed_token_ids: Annotated[object, AfterValidator(only([]))] = None
    bad_words: Annotated[object, AfterValidator(only([]))] = None
    logits_processors: Annotated[object, AfterValidator(only([]))] = None
    truncate_prompt_tokens: Annotated[object, AfterValidator(only())] = None
    prompt_embeds: Annotated[object, AfterValidator(only([]))] = None


class UnsupportedInCompletion(UnsupportedInGeneration):
    """Of /v1/completions alone."""

    suffix: Annotated[object, AfterValidator(only(""))] = None


class UnsupportedInChat(UnsupportedInGeneration):
    """Of /v1/chat/completions alone."""

    tools: Annotated[object, AfterValidator(only([]))] = None
    tool_choice: Annotated[object, AfterValidator(only("none"))] = None
    functions: Annotated[object, AfterValidator(only([]))] = None
    function_call: Annotated[object, AfterValidator(only("none"))] = None
    modalities: Annotated[object, AfterValidator(only(["text"], []))] = None
    audio: Annotated[object, AfterValidator(only())] = None
    web_search_options: Annotated[object, AfterValidator(only())] = None
    documents: Annotated[object, AfterValidator(only([]))] = None
    chat_template: Annotated[object, AfterValidator(only())] = None
    echo: Annotated[object, AfterValidator(only(False))] = None
