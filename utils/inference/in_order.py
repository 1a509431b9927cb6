"""Work on a stream of items in other threads, with few of them in memory at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """Yield `function(item)` of each item, in the items' order, computed by `threads` threads.

    The next item is taken, in the caller's thread, when fewer than `ahead` items wait for their turn to be yielded, so
    that memory does not grow where taking items or using results is faster or slower than the threads. An exception
    of `function` is raised when its item's turn comes; after an exception, and if the iterator is closed, nothing new
    is begun, and what has begun is waited for.
    """
    waiting = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            if len(waiting) == ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
            del item  # so that it can be freed when its thread is done
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
