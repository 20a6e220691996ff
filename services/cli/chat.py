"""`baton chat`: a conversation in the terminal over the public API."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import httpx
from rich.console import Console

from baton.errors import BatonError, Unavailable

_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 120.0
_HELP = "/reset starts anew, /quit or Ctrl-D leaves; Ctrl-C stops an answer"


class ChatSession:
    """One conversation; keeps the session id so that its turns meet their KV cache again."""

    def __init__(
        self, url: str, model: str, system: str, temperature: float, max_tokens: int, api_key: str
    ) -> None:
        headers = {"X-Session-ID": secrets.token_hex(8)}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)
        self._console = Console()
        self._model = model
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._opening)
        self._sampling = {"temperature": temperature, "max_tokens": max_tokens}

    def run(self) -> None:
        with self._client:
            self._model = self._model or self._served_model()
            self._console.print(f"[bold]{self._model}[/bold] at {self._client.base_url} ({_HELP})")
            while (line := self._read_line()) is not None:
                if line == "/reset":
                    self._messages = list(self._opening)
                elif line:
                    self._turn(line)

    def _served_model(self) -> str:
        models = self._checked(self._get("/v1/models")).json()["data"]
        return str(models[0]["id"])

    def _get(self, path: str) -> httpx.Response:
        try:
            return self._client.get(path)
        except httpx.TransportError as error:
            raise Unavailable(
                f"no router answers at {self._client.base_url}: {error}", field="url"
            ) from error

    def _read_line(self) -> str | None:
        try:
            line = self._console.input("[green]you>[/green] ").strip()
        except (EOFError, KeyboardInterrupt):
            return None
        return None if line == "/quit" else line

    def _turn(self, line: str) -> None:
        self._messages.append({"role": "user", "content": line})
        answer: list[str] = []
        try:
            for piece in self._stream():
                answer.append(piece)
                self._console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            self._console.print(" (stopped)", end="", style="dim")
        except (BatonError, httpx.TransportError) as error:
            self._console.print(f"{error}", style="red")
            self._messages.pop()
            return
        self._console.print()
        self._messages.append({"role": "assistant", "content": "".join(answer)})

    def _stream(self) -> Iterator[str]:
        body = {"model": self._model, "messages": self._messages, "stream": True, **self._sampling}
        with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                response.read()
            self._checked(response)
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise Unavailable(event["error"]["message"])
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_error:
            try:
                message = response.json()["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = response.reason_phrase
            raise Unavailable(f"{response.status_code}: {message}")
        return response
