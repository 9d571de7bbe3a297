"""What holds for every test: nothing is left behind, and hypothesis tries the same examples in every run."""

from __future__ import annotations

import gc
import multiprocessing.resource_tracker
import os
import signal
import uuid
from collections.abc import Generator, Iterator

import hypothesis
import psutil
import pytest

from tests import leaks

hypothesis.settings.register_profile("repository", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repository")

pytest_plugins = ["tests.servers.fixtures"]

_failed = pytest.StashKey[bool]()
_SESSION = "S3DLIO_TEST_SESSION"


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and so would be the processes that tests send a Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    # With torch imported a collection takes 85 ms; without the objects alive now, which stay alive anyway, 1 µs.
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compares with the state at the test's start, so what a wider fixture holds since before is no leak."""
    before = leaks.take()
    yield
    failed = request.node.stash.get(_failed, False)
    # The traceback of a failed test keeps its frames, and with them its files, alive: only the processes matter then.
    leaked = leaks.take() - before if failed else leaks.settle(before)
    leaks.kill(leaked)
    if leaked and not failed:
        pytest.fail(f"the test left behind:\n{leaked.describe()}", pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def no_orphans() -> Iterator[None]:
    """Finds processes whose parent was killed by a test and which then did not end: their environment tells."""
    multiprocessing.resource_tracker.ensure_running()  # once: the test that starts it would seem to leak it
    uuid.uuid1()  # likewise: with uuid-runtime installed libuuid opens a clock file and keeps it; Azure's SDK calls it
    token = uuid.uuid4().hex
    os.environ[_SESSION] = token
    yield
    del os.environ[_SESSION]
    ours = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(_SESSION) == token]
    _, alive = psutil.wait_procs([p for p in ours if p.pid != os.getpid()], timeout=leaks.PATIENCE)
    told = [f"process {p.pid}: {' '.join(p.cmdline())}" for p in alive]
    for process in alive:
        process.kill()
    if told:
        pytest.fail("the session left behind:\n" + "\n".join(told), pytrace=False)
