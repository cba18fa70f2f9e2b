"""Examples in order, made in a thread of their own a few ahead of use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

from focus_core.errors import ConfigError
from focus_core.training.examples import TrainingExample

# Example number i as a function of i, or an iterable in a fixed order.
Examples = Callable[[int], TrainingExample] | Iterable[TrainingExample]

_EXAMPLES_AHEAD = 4


@contextmanager
def prefetched(examples: Examples, numbers: Iterable[int]) -> Iterator[Iterator[TrainingExample]]:
    """Examples in order, made in a thread of their own a few ahead of use."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="examples")
    make = examples if callable(examples) else _by_number(examples)

    def in_order() -> Iterator[TrainingExample]:
        pending: deque[Future[TrainingExample]] = deque()
        for number in numbers:
            pending.append(pool.submit(make, number))
            if len(pending) > _EXAMPLES_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    try:
        yield in_order()
    finally:
        pool.shutdown(cancel_futures=True)


def _by_number(examples: Iterable[TrainingExample]) -> Callable[[int], TrainingExample]:
    """An iterable as a function of rising numbers; the examples between them are passed over."""
    iterator, position = iter(examples), 0

    def make(number: int) -> TrainingExample:
        nonlocal position
        example = next(islice(iterator, number - position, None), None)
        position = number + 1
        if example is None:
            raise ConfigError(f"The examples end before number {number}: lower steps, or let them repeat.")
        return example

    return make
