"""Clients that ask a cluster for the same few completions again and again, and know what the answers have to be."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from cluster import Answer, Cluster


class Load:
    """`clients` at work from entering to leaving the context; leaving it raises what any of them has found wrong:
    an error, a lost or repeated token, another token than in an undisturbed run."""

    def __init__(self, cluster: Cluster, bodies: Sequence[Mapping[str, Any]], clients: int) -> None:
        self.answers = 0
        self._cluster = cluster
        self._bodies = bodies
        self._expected = [cluster.complete(**body) for body in bodies]
        self._threads = ThreadPoolExecutor(clients)
        self._clients = clients
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._running: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._running = [self._threads.submit(self._ask) for _ in range(self._clients)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        self._threads.shutdown()
        for client in self._running:
            client.result()

    def check(self) -> None:
        """Raises at once what a client has found."""
        for client in self._running:
            if client.done():
                client.result()

    def _ask(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            which = number % len(self._bodies)
            answer = self._cluster.complete(**self._bodies[which], cache_salt=f"{number}")
            assert_same(answer, self._expected[which])
            self.answers += 1


def assert_same(answer: Answer, expected: Answer) -> None:
    for choice, other in zip(answer.choices, expected.choices, strict=True):
        assert choice["token_ids"] == other["token_ids"]
        assert choice["text"] == other["text"]
        assert choice["finish_reason"] == other["finish_reason"]
    assert answer.usage["completion_tokens"] == expected.usage["completion_tokens"]
