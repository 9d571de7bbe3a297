"""A store that does not answer: it is told in the log while it is tried, and given up early where it never answered."""

from __future__ import annotations

import logging
import re

import pytest

from s3dlio.engine.errors import StorageError
from tests.objectstores.places import Place
from tests.servers.faults import Action, ResetBefore, Status

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("action", [ResetBefore(), Status(500, "InternalError")], ids=str)
def test_trouble_is_told_once_by_all_workers(place: Place, action: Action, caplog: pytest.LogCaptureFixture) -> None:
    """With its cause and what is waited for; the next request that fails is the same trouble."""
    with place.open(options={"retry_deadline": 0.5}) as store:
        place.proxy.rule(action, times=None, **place.listing)
        for _ in range(3):
            with pytest.raises(StorageError, match=r"^list of '.*' failed \d+ times in "):
                store.list()
    told = [record for record in caplog.records if "it is tried again" in record.getMessage()]
    assert [(record.name, record.levelno) for record in told] == [("s3dlio.engine", logging.WARNING)]
    pattern = (
        rf"list of '.*' failed \d+ times in .* s, the last time with: list (of )?{place.uri}.*; it is tried again for"
    )
    assert re.match(pattern, told[0].getMessage())


def test_a_store_that_never_answered_is_given_up_early(place: Place) -> None:
    """The whole deadline, two minutes, would be beyond the test's own."""
    with place.open(options={"first_deadline": 0.5}) as store:
        place.proxy.rule(ResetBefore(), times=None)
        with pytest.raises(StorageError, match=r"^list of '.*' failed \d+ times in "):
            store.list()
        place.proxy.clear()
        assert store.list() == []
