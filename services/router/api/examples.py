"""What /openapi.json shows of answers. The bodies are msgspec structs, so FastAPI cannot derive it."""

from __future__ import annotations

from typing import Any

_ERROR = {
    "error": {
        "message": "temperature: Input should be less than or equal to 2, not 3",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "invalid_request",
    }
}
_USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 0},
}
_CHAT = {
    "id": "chatcmpl-5f0c2a9e6b1d4c7f8a3e5d7b9c1f2e4a",
    "object": "chat.completion",
    "created": 1790000000,
    "model": "baton-demo",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Anyone may.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
    "usage": _USAGE,
}
_CHAT_EVENTS = """\
data: {"id":"chatcmpl-5f0c","object":"chat.completion.chunk","created":1790000000,"model":"baton-demo",\
"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}

data: [DONE]

"""
_COMPLETION = {
    "id": "cmpl-5f0c2a9e6b1d4c7f8a3e5d7b9c1f2e4a",
    "object": "text_completion",
    "created": 1790000000,
    "model": "baton-demo",
    "choices": [
        {
            "index": 0,
            "text": ", free of charge",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ],
    "usage": _USAGE,
}
_COMPLETION_EVENTS = """\
data: {"id":"cmpl-5f0c","object":"text_completion","created":1790000000,"model":"baton-demo",\
"choices":[{"index":0,"text":", free","logprobs":null,"finish_reason":null}]}

data: [DONE]

"""


def json_example(description: str, example: object) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"example": example}}}


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": json_example("Any failure, in OpenAI's shape", _ERROR)
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: json_example("The request cannot be served as it stands; `param` names the field", _ERROR),
    401: json_example("No key, or a wrong one", _ERROR),
    404: json_example("Another model than the one served", _ERROR),
    413: json_example("The body is too large", _ERROR),
    429: json_example("Too many requests under way; see `Retry-After`", _ERROR),
    503: json_example("Nothing can serve the request now", _ERROR),
}


def _generation(description: str, example: object, events: str) -> dict[int | str, dict[str, Any]]:
    success = json_example(description, example)
    success["content"]["text/event-stream"] = {"example": events}
    return {200: success, **_REFUSALS}


CHAT_RESPONSES = _generation("The answer; with `stream`, as events", _CHAT, _CHAT_EVENTS)
COMPLETION_RESPONSES = _generation(
    "The continuation; with `stream`, as events", _COMPLETION, _COMPLETION_EVENTS
)
