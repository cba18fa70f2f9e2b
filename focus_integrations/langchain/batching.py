"""One engine call for a batch of chats.

LangChain runs a chat model's batch as one `invoke` per thread, with callbacks and caches of its own around each. Here
the threads meet just before the engine: the last to arrive asks for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition
from typing import Generic, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Gathering(Generic[Request, Reply]):
    """Meeting point of several threads, each of which is a `member` and may `ask`."""

    def __init__(
        self, owner: object, size: int, ask_all: Callable[[Sequence[Request]], Sequence[Reply | Exception]]
    ) -> None:
        """Args:
        owner: whose calls meet here
        size: number of members; the meeting starts when all of them have asked, or have left without asking
        ask_all: gives a reply or an error for every request
        """
        self.owner = owner
        self._on_their_way = size
        self._ask_all = ask_all
        self._requests: dict[int, Request] = {}
        self._replies: dict[int, Reply | Exception] = {}
        self._asked = 0
        self._changed = Condition()

    @contextmanager
    def member(self) -> Iterator[None]:
        """Around everything that one thread does; once it is out (a cached answer, an error), nobody waits for it."""
        try:
            yield
        finally:
            with self._changed:
                self._on_their_way -= 1
                self._start_if_complete()

    def ask(self, request: Request) -> Reply:
        """The reply, once all have asked.

        Raises:
            Exception: what `ask_all` gave for this request, or raised
        """
        with self._changed:
            number = self._asked
            self._asked += 1
            self._requests[number] = request
            self._on_their_way -= 1
            self._start_if_complete()
            self._changed.wait_for(lambda: number in self._replies)
            reply = self._replies.pop(number)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _start_if_complete(self) -> None:
        if self._on_their_way or not self._requests:
            return
        numbers, requests = list(self._requests), list(self._requests.values())
        self._requests.clear()
        try:
            replies = self._ask_all(requests)
        except Exception as error:
            replies = [error] * len(requests)
        self._replies.update(zip(numbers, replies, strict=True))
        self._on_their_way += len(numbers)
        self._changed.notify_all()
