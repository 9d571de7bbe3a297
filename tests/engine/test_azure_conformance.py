"""The suite of the contract against Azurite, bare and as ``open_backend`` wraps it, and what Azure does differently."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from s3dlio.engine.backends import azure, azure_options, open_backend
from s3dlio.engine.contract import Backend, Location
from s3dlio.engine.errors import NotFoundError
from tests.engine.conformance import KEY, Conformance, get, keys, store_parts, view
from tests.servers.azurite import Container


class TestAzure(Conformance):
    dates_uploads = False

    @pytest.fixture
    def location(self, az_container: Container) -> Location:
        rest = az_container.uri.removeprefix("az://") + "/runs/one"
        return azure_options.parse(rest, az_container.options, os.environ)

    @pytest.fixture(params=[azure.open_location, open_backend], ids=["bare", "wrapped"])
    def wrap(self, request: pytest.FixtureRequest) -> Callable[[Location], Backend]:
        wrapper: Callable[[Location], Backend] = request.param
        return wrapper

    # Azure has no call that drops uncommitted blocks: they stay for a week, and ``abort`` says so.

    def test_aborting_again_is_harmless(self, backend: Backend, other: Backend) -> None:
        name = backend.begin(KEY)
        store_parts(backend, KEY, name, b"part")
        for store in (backend, backend, other):
            store.abort(KEY, name)
        backend.abort(KEY, "no such upload")
        backend.abort("none/none", "no such upload")
        assert keys(backend) == []
        assert [info.upload for info in backend.uploads()] == [name]

    def test_an_aborted_upload_takes_no_part_and_is_not_completed(self, backend: Backend) -> None:
        """Only what cannot be an upload is refused; the aborted one changes nothing unless it is completed."""
        backend.put(KEY, view(b"body"))
        name = backend.begin(KEY)
        store_parts(backend, KEY, name, b"BODY")
        backend.abort(KEY, name)
        assert backend.read(KEY, limit=10)[0] == b"body"
        with pytest.raises(NotFoundError, match="upload"):
            backend.put_part(KEY, "no such upload", 1, 0, view(b"BODY"))
        with pytest.raises(NotFoundError, match="upload"):
            backend.complete(KEY, "no such upload", store_parts(backend, KEY, name, b"BODY"))
        assert backend.read(KEY, limit=10)[0] == b"body"

    def test_open_uploads_are_found_and_not_listed(self, backend: Backend, other: Backend) -> None:
        backend.put("a/b/done", view(b"x"))
        begun = {backend.begin(key): key for key in ("a/b/open", "a/b/open", "a/other", "c")}
        for name, key in begun.items():
            store_parts(backend, key, name, b"part")
        assert keys(other) == ["a/b/done"]
        found = list(other.uploads())
        assert {info.upload: info.key for info in found} == begun
        assert {info.upload for info in other.uploads("a/b/o")} == {n for n, key in begun.items() if key == "a/b/open"}
        assert list(other.uploads("a/b/open/")) == []
        for info in found:
            other.abort(info.key, info.upload)
        assert {info.upload for info in backend.uploads()} == set(begun)  # for a week

    # A commit drops the uncommitted blocks of all writers of the key.

    def test_two_uploads_of_one_key_do_not_mix(self, backend: Backend) -> None:
        first, second = backend.begin(KEY), backend.begin(KEY)
        assert first != second
        of_first = store_parts(backend, KEY, first, b"first ")
        of_second = store_parts(backend, KEY, second, b"second")
        backend.complete(KEY, first, of_first)
        assert get(backend, KEY) == b"first "
        with pytest.raises(NotFoundError, match=f"no open upload {second}") as caught:
            backend.complete(KEY, second, of_second)
        assert not caught.value.transient
        assert get(backend, KEY) == b"first "
        backend.complete(KEY, second, store_parts(backend, KEY, second, b"second"))
        assert get(backend, KEY) == b"second"
