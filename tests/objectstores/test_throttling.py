"""The store asks for fewer requests: longer than an SDK holds out, for ever; what other workers do meanwhile."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from s3dlio.engine.errors import S3dlioError, ThrottledError
from tests.faults import states
from tests.faults.waiting import until
from tests.objectstores import hurried
from tests.objectstores.checks import commits, new, old, unharmed
from tests.objectstores.places import MANIFEST, MIB, SHARD, Place, get, put
from tests.servers.faults import Hold, ResetBefore, Status

pytestmark = pytest.mark.slow

LONG = 12
"""Refusals in a row of one request; botocore's most patient settings hold out eight."""


def test_refused_longer_than_an_sdk_holds_out(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one part, of the completion, of the manifest and of one range."""
    monkeypatch.setattr(sys, "executable", hurried.executable(tmp_path))
    with place.open(memory=48 * MIB) as store:  # a pool of its own, with hurried workers
        store.save(1, old())
        busy = Status(503, place.busy)
        which = [place.part(2), place.complete, put(MANIFEST), get(SHARD)]
        rules = [place.proxy.rule(busy, times=LONG, **each) for each in which]
        commits(place, store)
        assert [rule.fired for rule in rules] == [LONG] * 4
        assert len(place.proxy.requests(**place.part(2))) == LONG + 1


@pytest.mark.parametrize("threshold", [2 * MIB, 64 * MIB], ids=["parts", "one request"])
def test_refused_for_ever(place: Place, threshold: int) -> None:
    """The error names key, part, attempts and the last cause; the upload is dropped, and the next save works."""
    with place.open(multipart_threshold=threshold, options={"retry_deadline": 0.5}) as store:
        store.save(1, old())
        which = place.part(2) if threshold == 2 * MIB else {"method": "PUT", "path": SHARD}
        rule = place.proxy.rule(Status(503, place.busy), times=None, **which)
        what = "put_part 2" if threshold == 2 * MIB else "put"
        with pytest.raises(
            ThrottledError,
            match=rf"^{what} of 'shards/ckpt-2-.*/rank-0\.bin' failed (\d+) times in .* s, .*{place.busy}",
        ) as caught:
            store.save(2, new())
        assert f" failed {rule.fired} times " in str(caught.value)
        assert rule.fired > 1
        unharmed(place, store, [1])
        place.proxy.clear()
        commits(place, store)


@pytest.mark.parametrize("request_", ["begin", "complete", "index", "manifest"])
def test_failing_for_ever_elsewhere(place: Place, request_: str) -> None:
    """Whatever the request: an error that names the key, and no checkpoint."""
    if request_ == "begin" and place.kind == "az":
        pytest.skip("an upload to Azure begins without a request")
    which = {
        "begin": {"method": "POST", "path": SHARD, "query": "^uploads"},
        "complete": place.complete,
        "index": put(r"ckpt-2-.*rank-0\.idx$"),
        "manifest": put(MANIFEST),
    }[request_]
    with place.open(options={"retry_deadline": 0.5}) as store:
        store.save(1, old())
        place.proxy.rule(Status(500, "InternalError"), times=None, **which)
        with pytest.raises(S3dlioError, match=r"ckpt-2-.* failed \d+ times in .*InternalError"):
            store.save(2, new())
        assert [info.step for info in store.list()] == [1]
        assert states.same(store.load(), old())
        if request_ in ("begin", "complete"):
            unharmed(place, store, [1])
        place.proxy.clear()
        store.save(3, old())
        store.cleanup(min_age=0)
        assert place.keys("ckpt-2-") == []
        assert states.same(store.load(1), old())


def test_a_pointer_that_cannot_be_moved_fails_no_save(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.open(options={"retry_deadline": 0.5}) as store:
        store.save(1, old())
        place.proxy.rule(ResetBefore(), times=None, **put("latest"))
        commits(place, store)
    assert "manifests/latest.json was not moved to ckpt-2-" in caplog.text


def test_a_refusal_holds_back_the_whole_pool(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """One worker's part is refused four times; another's, on its way meanwhile, is stored, and then it waits, too.

    After the fourth refusal all requests are held back 0.4 seconds at least.
    """
    caplog.set_level(logging.DEBUG, "s3dlio")
    with place.open(memory=48 * MIB, connections=1) as store:  # two workers, one request each
        store.save(1, old())
        store.save(2, states.noise(7, 6))  # both workers have asked what the store can do
        assert store.delete(2)
        place.proxy.clear()
        caplog.clear()
        held = place.proxy.rule(Hold(), **place.part())
        refused = place.proxy.rule(Status(503, place.busy), **place.part(), times=4)
        handle = store.save_async(2, states.noise(2, 24))
        held.wait()
        refused.wait(4)
        # The worker has told so: it has taken note, too, since no step but that lies between.
        until(lambda: caplog.text.count("ThrottledError") >= 4, "the fourth refusal to be logged")
        seen = place.proxy.log
        (last,) = [request.at for request in seen if request.action == refused.action][3:]
        held.release()
        handle.result()
        later = place.proxy.log[len(seen) :]
        assert len(later) > 4
        assert min(request.at for request in later) >= last + 0.4
        assert states.same(store.load(2), states.noise(2, 24))
