"""Work in several threads at once, and work that a Ctrl-C must not cut in two.

Owns two rules. Threads that cannot be started, because the interpreter is ending or a limit is reached, are done
without: the caller's own does all. And Python raises ``KeyboardInterrupt`` between any two steps of the main thread, so
what must not lose a slot there runs in another thread while the main thread waits. ``job``, ``fetch`` and ``pool`` use
it; a thread costs 60 µs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Each(Protocol):
    """How a function is applied to many items: ``map``, or the ``map`` of a thread pool where round trips are slow."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]: ...


def run_together(work: Callable[[], None], count: int) -> None:
    """Do ``work`` in up to ``count`` threads, the caller's among them, until each has returned; it must not raise."""
    threads = [threading.Thread(target=work, name="s3dlio-copy", daemon=True) for _ in range(count - 1)]
    started = 0
    try:
        for thread in threads:
            try:
                thread.start()
            except RuntimeError:
                break
            started += 1
        work()
    finally:
        for thread in threads[:started]:
            thread.join()


def each(function: Callable[[T], R], items: Iterable[T], width: int) -> list[R]:
    """``function`` of all items, up to ``width`` at once, in their order; after a failure no more, and it is raised."""
    waiting = enumerate(items)
    order = threading.Lock()
    results: dict[int, R] = {}
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not errors:
                with order:
                    taken = next(waiting, None)
                if taken is None:
                    return
                number, item = taken
                results[number] = function(item)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    run_together(work, width)
    if errors:
        raise errors[0]
    return [results[number] for number in sorted(results)]


def run_uninterrupted(work: Callable[[], T], interrupt: Callable[[BaseException], None]) -> T:
    """Do ``work``, return what it returns and raise what it raises; in the main thread, do it in another.

    If the main thread is interrupted meanwhile, ``interrupt`` is told, which must make ``work`` return soon; the
    interruption is raised once it has.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: list[T] = []
    errors: list[BaseException] = []
    # Not join(): up to Python 3.12 one that was interrupted takes the thread for ended. Nor an Event, whose wait is
    # Python code that an interrupt can cut in two.
    ended = threading.Lock()
    ended.acquire()

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            errors.append(error)
        finally:
            ended.release()

    thread = threading.Thread(target=body, name="s3dlio-copy", daemon=True)
    try:
        thread.start()
        ended.acquire()
    except BaseException as error:
        interrupt(error)
        if thread.ident is not None and not results and not errors:
            ended.acquire()
        raise
    if errors:
        raise errors[0]
    return results[0]
