"""Continuous batching: requests of any length share one batch and one pool of pages.

A request joins the batch when there are pages for its prompt and leaves when it is finished, while the others go on
writing. Pages are taken as tokens come and not ahead of them. Where none is left, the request that joined last gives
its pages back and waits; later its prompt and what it has written so far are read again in one pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from faops.nn import OutOfPagesError

from .llama import PagedLlama


@dataclass
class Request:
    """A prompt, and the tokens that were generated for it so far."""

    prompt: Sequence[int]
    max_new_tokens: int
    generated: list[int] = field(default_factory=list)
    sequence: Any = None  # its place in the cache, while it is in the batch

    def tokens(self, start: int = 0) -> list[int]:
        """All tokens of prompt and answer, from position ``start`` on."""
        return [*self.prompt, *self.generated][start:]


class Batch:
    """Greedy decoding of many requests, at most ``most`` at a time.

    ``prefix`` are tokens that every prompt begins with, see :func:`shared_prefix`: they are read once, and all requests
    share the pages that hold them. ``stop`` is the token that ends an answer.
    """

    def __init__(self, model: PagedLlama, stop: int, most: int = 64, prefix: Sequence[int] = ()) -> None:
        self.model, self.cache, self.stop, self.most = model, model.cache, stop, most
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.prefix = self.cache.allocate()
        if prefix:
            model.read([self.prefix], [prefix])
        self.steps = self.interruptions = self.peak_pages = 0

    def run(self, requests: Sequence[Request]) -> None:
        """Work until every request is finished."""
        self.waiting.extend(requests)
        while self.waiting or self.running:
            self.step()
        self.cache.free(self.prefix)

    def step(self) -> None:
        """One pass of the model: the prompts of those that join and the last tokens of the others, together."""
        self.join()
        logits = self.read()
        for request, token in zip(self.running, logits.argmax(dim=-1).tolist()):
            request.generated.append(token)
        self.steps += 1
        self.peak_pages = max(self.peak_pages, self.cache.used_pages)
        self.leave()

    def join(self) -> None:
        """Let those in that wait, in order, while there are pages for them and one more for each that is running."""
        while self.waiting and len(self.running) < self.most:
            request = self.waiting[0]
            length = len(request.tokens())
            needed = self.cache.pages_for(length) - self.prefix.length // self.cache.page_size
            if self.running and needed + len(self.running) > self.cache.free_pages:
                break
            request.sequence = self.cache.fork(self.prefix, tokens=length)
            self.running.append(self.waiting.popleft())

    def read(self) -> Any:
        """The logits after each running request. Takes requests out of the batch until the pages suffice."""
        while True:
            sequences = [request.sequence for request in self.running]
            unread = [request.tokens(start=request.sequence.length) for request in self.running]
            try:
                return self.model.read(sequences, unread)
            except OutOfPagesError:
                if len(self.running) == 1:
                    raise
                self.interrupt()

    def interrupt(self) -> None:
        """Put the request that joined last back to the head of those that wait, without its pages."""
        request = self.running.pop()
        self.cache.free(request.sequence)
        self.waiting.appendleft(request)
        self.interruptions += 1

    def leave(self) -> None:
        """Give back the pages of finished requests."""
        for request in self.running:
            if self.finished(request):
                self.cache.free(request.sequence)
        self.running = [request for request in self.running if not self.finished(request)]

    def finished(self, request: Request) -> bool:
        return request.generated[-1] == self.stop or len(request.generated) == request.max_new_tokens


def shared_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with, such as a system prompt, but for the last token of the shortest.

    That one is left so that each request has something to read: an answer starts from the logits of a prompt's end.
    """
    shared = [tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts))]
    return shared[: min(map(len, prompts)) - 1]
