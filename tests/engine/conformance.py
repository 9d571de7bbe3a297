"""What every backend must do, sentence by sentence of the contract: one class, run against each of them.

A test module of a store subclasses ``Conformance`` and gives it the fixture ``location``: a fresh and empty store.
Sizes follow the store's ``Limits``, so that the same tests run against a store that takes no part below 5 MiB.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import pickle
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from s3dlio.engine.backends import open_backend
from s3dlio.engine.contract import Backend, Location, ObjectInfo, PartReceipt
from s3dlio.engine.errors import ConfigError, CorruptError, NotFoundError, PreconditionError, StorageError

BAD_KEYS = ("", "/a", "a/", "a//b", ".", "a/../b", "../a", "a/./b", "a\\b", "a\0b")
KEY = "folder/object.bin"
PAGE = 4096


def data(size: int, seed: int = 1) -> bytes:
    """``size`` bytes that differ with ``seed``."""
    return random.Random(seed).randbytes(size)


def view(body: bytes) -> list[memoryview]:
    return [memoryview(body)]


def pieces(body: bytes, cuts: list[int]) -> list[memoryview]:
    """``body`` cut into segments, some of them empty."""
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    return [memoryview(body)[begin:end] for begin, end in itertools.pairwise(edges)]


def part_size(backend: Backend) -> int:
    """A size every part but the last may have."""
    limits = backend.limits
    smallest = max(limits.part_min, 16 << 10)
    return -(-smallest // limits.alignment) * limits.alignment


def upload(backend: Backend, key: str, body: bytes) -> None:
    """Store ``body`` in parts."""
    name = backend.begin(key, size=len(body))
    receipts = store_parts(backend, key, name, body)
    backend.complete(key, name, receipts)


def store_parts(backend: Backend, key: str, name: str, body: bytes) -> list[PartReceipt]:
    step = part_size(backend)
    offsets = range(0, max(len(body), 1), step)
    return [
        backend.put_part(key, name, number, offset, view(body[offset : offset + step]))
        for number, offset in enumerate(offsets, start=1)
    ]


def get(backend: Backend, key: str) -> bytes:
    """A whole object by ``get_range``."""
    into = bytearray(backend.head(key).size)
    backend.get_range(key, 0, memoryview(into))
    return bytes(into)


def keys(backend: Backend, prefix: str = "") -> list[str]:
    return [info.key for info in backend.list(prefix)]


class Conformance:
    """The suite; subclasses give the fixture ``location`` and may give another ``wrap``.

    ``clock_slack``: seconds that the time in the answer to a write may lie beside the one the store notes: S3 does not
    tell that one, and a request more for each write would be a high price for it.
    """

    clock_slack = 0.0
    dates_uploads = True
    """Whether the store tells when an upload last received bytes."""

    def seen(self, info: ObjectInfo) -> ObjectInfo:
        """What others must see of an object whose write was answered with ``info``."""
        near: Any = pytest.approx(info.modified, abs=self.clock_slack)
        return replace(info, modified=near)

    @pytest.fixture
    def wrap(self) -> Callable[[Location], Backend]:
        return open_backend

    @pytest.fixture
    def backend(self, location: Location, wrap: Callable[[Location], Backend]) -> Iterator[Backend]:
        opened = wrap(location)
        yield opened
        opened.close()

    @pytest.fixture
    def other(self, location: Location, wrap: Callable[[Location], Backend]) -> Iterator[Backend]:
        """The same store opened again, as another worker would."""
        opened = wrap(pickle.loads(pickle.dumps(location)))
        yield opened
        opened.close()

    # Whole objects

    @pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, PAGE + 1, 300_000])
    def test_put_is_read_back(self, backend: Backend, other: Backend, size: int) -> None:
        body = data(size)
        info = backend.put(KEY, view(body))
        assert (info.key, info.size) == (KEY, size)
        assert info.etag
        assert abs(info.modified - time.time()) < 3600
        assert other.read(KEY, limit=size) == (body, self.seen(info))
        assert other.head(KEY) == self.seen(info)
        assert get(other, KEY) == body
        assert list(other.list()) == [self.seen(info)]

    def test_put_gathers_segments(self, backend: Backend) -> None:
        body = data(400_001)
        backend.put(KEY, pieces(body, [0, 1, 1, 100, PAGE, 3 * PAGE, 3 * PAGE + 7, 399_000]))
        assert get(backend, KEY) == body

    def test_put_of_no_segments_is_an_empty_object(self, backend: Backend) -> None:
        assert backend.put(KEY, []).size == 0
        assert backend.read(KEY, limit=0)[0] == b""

    def test_put_replaces_and_changes_the_etag(self, backend: Backend) -> None:
        first = backend.put(KEY, view(b"first"))
        second = backend.put(KEY, view(b"later"))
        assert second.etag != first.etag
        assert backend.read(KEY, limit=10) == (b"later", self.seen(second))

    def test_an_object_above_the_limit_of_read_is_refused(self, backend: Backend) -> None:
        backend.put(KEY, view(b"12345"))
        with pytest.raises(StorageError, match="more than the 4") as caught:
            backend.read(KEY, limit=4)
        assert not caught.value.transient

    def test_what_is_absent_is_not_found(self, backend: Backend) -> None:
        backend.put("folder/other", view(b"x"))
        for key in ("none", "folder", "folder/none", "folder/other/below", "none/none"):
            for call in (
                lambda key=key: backend.head(key),
                lambda key=key: backend.read(key, limit=1),
                lambda key=key: backend.get_range(key, 0, memoryview(bytearray(1))),
            ):
                with pytest.raises(NotFoundError, match=key):
                    call()

    def test_delete(self, backend: Backend) -> None:
        backend.put("a/b/c", view(b"x"))
        backend.put("a/d", view(b"x"))
        backend.delete("a/b/c")
        backend.delete("a/b/c")
        backend.delete("none/at/all")
        assert keys(backend) == ["a/d"]
        with pytest.raises(NotFoundError):
            backend.head("a/b/c")
        backend.put("a/b/c", view(b"y"))
        assert backend.read("a/b/c", limit=1)[0] == b"y"

    # Conditions

    def test_if_absent_keeps_what_is_there(self, backend: Backend) -> None:
        info = backend.put(KEY, view(b"first"), if_absent=True)
        with pytest.raises(PreconditionError, match=KEY) as caught:
            backend.put(KEY, view(b"later"), if_absent=True)
        assert not caught.value.transient
        assert backend.read(KEY, limit=10) == (b"first", self.seen(info))
        assert keys(backend) == [KEY]

    def test_if_match_needs_the_version(self, backend: Backend) -> None:
        first = backend.put(KEY, view(b"first"))
        second = backend.put(KEY, view(b"second"), if_match=first.etag)
        with pytest.raises(PreconditionError, match=KEY):
            backend.put(KEY, view(b"third"), if_match=first.etag)
        assert backend.read(KEY, limit=10) == (b"second", self.seen(second))

    def test_if_match_of_an_absent_key(self, backend: Backend) -> None:
        info = backend.put(KEY, view(b"first"))
        backend.delete(KEY)
        with pytest.raises(PreconditionError):
            backend.put(KEY, view(b"second"), if_match=info.etag)
        assert keys(backend) == []

    def test_both_conditions_at_once_are_refused(self, backend: Backend) -> None:
        with pytest.raises(ConfigError, match="exclude"):
            backend.put(KEY, view(b"x"), if_absent=True, if_match="tag")
        assert keys(backend) == []

    def test_if_absent_has_one_winner(self, backend: Backend, other: Backend) -> None:
        self._race(backend, other, lambda store, body: store.put(KEY, view(body), if_absent=True))

    def test_if_match_has_one_winner(self, backend: Backend, other: Backend) -> None:
        etag = backend.put(KEY, view(b"before")).etag
        self._race(backend, other, lambda store, body: store.put(KEY, view(body), if_match=etag))

    def _race(self, backend: Backend, other: Backend, write: Callable[[Backend, bytes], object]) -> None:
        def attempt(number: int) -> bytes | None:
            body = b"%d" % number * 100
            try:
                write(backend if number % 2 else other, body)
            except PreconditionError:
                return None
            return body

        with ThreadPoolExecutor(8) as threads:
            won = [body for body in threads.map(attempt, range(16)) if body is not None]
        assert len(won) == 1
        assert backend.read(KEY, limit=1000)[0] == won[0]
        assert list(backend.uploads()) == []

    # Listings

    def test_list_is_in_key_order(self, backend: Backend) -> None:
        names = ["a", "a-b", "a.b", "a/b", "a/b.c", "a/b/c", "a/é", "a0", "b/.hidden", "b/c"]
        names.remove("a")  # a store of files cannot hold both a and a/b
        names.remove("a/b")
        for name in reversed(names):
            backend.put(name, view(name.encode()))
        assert keys(backend) == sorted(names)
        assert [info.size for info in backend.list("a/")] == [
            len(name.encode()) for name in sorted(names) if "a/" in name
        ]

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
    def test_pages_are_the_whole_listing_in_pieces(self, backend: Backend, other: Backend, limit: int) -> None:
        names = ["x/1", "x/2/3", "x/2/30", "x/4", "xy/1", "y", "y-"]
        for name in names:
            backend.put(name, view(b"1"))
        pages = [*other.pages(limit=limit)]
        assert [info for page in pages for info in page.objects] == list(backend.list())
        assert [info.key for page in pages for info in page.objects] == names
        assert all(len(page.objects) <= limit for page in pages)
        assert not any(page.folders for page in pages)
        assert len(pages) >= -(-len(names) // limit)
        assert [bool(page.next) for page in pages] == [True] * (len(pages) - 1) + [False]

    @pytest.mark.parametrize("limit", [1, 2, None])
    @pytest.mark.parametrize(
        ("prefix", "objects", "folders"),
        [
            ("", ["y", "y-"], ["x/", "xy/"]),
            ("x", [], ["x/", "xy/"]),
            ("x/", ["x/1", "x/2e"], ["x/2/", "x/3/"]),
            ("x/2", ["x/2e"], ["x/2/"]),
            ("x/2/", ["x/2/3", "x/2/30"], []),
            ("y", ["y", "y-"], []),
            ("z", [], []),
            ("x/1/", [], []),
        ],
    )
    def test_shallow_pages(
        self, backend: Backend, prefix: str, objects: list[str], folders: list[str], limit: int | None
    ) -> None:
        for key in ("x/1", "x/2/3", "x/2/30", "x/2e", "x/3/4/5/6", "xy/1", "y", "y-"):
            backend.put(key, view(b"1"))
        pages = [*backend.pages(prefix, shallow=True, limit=limit)]
        assert [info.key for page in pages for info in page.objects] == objects
        assert [name for page in pages for name in page.folders] == folders
        assert all(len(page.objects) + len(page.folders) <= (limit or 100) for page in pages)

    def test_a_listing_may_go_on_after_what_was_deleted(self, backend: Backend) -> None:
        """Who removes a folder page by page asks for each page when the objects of those before are gone."""
        for number in range(5):
            backend.put(f"x/{number}/y", view(b"1"))
        for page in backend.pages("x/", limit=2):
            for info in page.objects:
                backend.delete(info.key)
        assert keys(backend) == []

    @pytest.mark.parametrize(
        ("prefix", "found"),
        [
            ("x/", ["x/1", "x/2/3", "x/2/30", "x/4"]),
            ("x", ["x/1", "x/2/3", "x/2/30", "x/4", "xy/1"]),
            ("x/2", ["x/2/3", "x/2/30"]),
            ("x/2/3", ["x/2/3", "x/2/30"]),
            ("x/1", ["x/1"]),
            ("x/1/", []),
            ("none", []),
            ("none/none/", []),
        ],
    )
    def test_list_of_a_prefix(self, backend: Backend, prefix: str, found: list[str]) -> None:
        for key in ("x/1", "x/2/3", "x/2/30", "x/4", "xy/1", "y"):
            backend.put(key, view(b"1"))
        assert keys(backend, prefix) == found

    def test_an_empty_store_lists_nothing(self, backend: Backend) -> None:
        assert keys(backend) == []
        assert list(backend.uploads()) == []

    # Uploads

    def test_an_upload_is_read_back(self, backend: Backend, other: Backend) -> None:
        body = data(3 * part_size(backend) + 1234)
        name = backend.begin(KEY, size=len(body))
        receipts = store_parts(other, KEY, name, body)
        info = backend.complete(KEY, name, receipts)
        assert (info.key, info.size) == (KEY, len(body))
        assert other.head(KEY) == self.seen(info)
        assert get(other, KEY) == body
        assert list(backend.list()) == [self.seen(info)]
        assert list(backend.uploads()) == []

    def test_the_size_need_not_be_known(self, backend: Backend) -> None:
        body = data(2 * part_size(backend))
        name = backend.begin(KEY)
        backend.complete(KEY, name, store_parts(backend, KEY, name, body))
        assert get(backend, KEY) == body

    @pytest.mark.parametrize("announced", [1, 10_000_000])
    def test_the_size_may_be_announced_wrong(self, backend: Backend, announced: int) -> None:
        body = data(part_size(backend) + 5)
        name = backend.begin(KEY, size=announced)
        assert backend.complete(KEY, name, store_parts(backend, KEY, name, body)).size == len(body)
        assert get(backend, KEY) == body

    def test_receipts_tell_what_was_stored(self, backend: Backend) -> None:
        step = part_size(backend)
        name = backend.begin(KEY)
        first = backend.put_part(KEY, name, 1, 0, view(data(step)))
        second = backend.put_part(KEY, name, 2, step, view(b"tail"))
        assert (first.number, first.offset, first.size) == (1, 0, step)
        assert (second.number, second.offset, second.size) == (2, step, 4)
        backend.abort(KEY, name)

    def test_parts_come_in_any_order_from_many_threads(self, backend: Backend, other: Backend) -> None:
        step = part_size(backend)
        body = data(6 * step + 77)
        name = backend.begin(KEY, size=len(body))
        order = list(range(7))
        random.Random(3).shuffle(order)

        def store(index: int) -> PartReceipt:
            part = body[index * step : (index + 1) * step]
            return (backend if index % 2 else other).put_part(KEY, name, index + 1, index * step, view(part))

        with ThreadPoolExecutor(4) as threads:
            receipts = list(threads.map(store, order))
        backend.complete(KEY, name, sorted(receipts, key=lambda receipt: receipt.number))
        assert get(backend, KEY) == body

    @pytest.mark.parametrize(
        "cuts", [[1], [0, 0, 5], [PAGE, 2 * PAGE], [100, PAGE + 100, 9000], list(range(0, 16000, 999))]
    )
    def test_parts_gather_segments(self, backend: Backend, cuts: list[int]) -> None:
        step = part_size(backend)
        body = data(2 * step + 3)
        name = backend.begin(KEY)
        receipts = [
            backend.put_part(KEY, name, index + 1, index * step, pieces(body[index * step : (index + 1) * step], cuts))
            for index in range(3)
        ]
        backend.complete(KEY, name, receipts)
        assert get(backend, KEY) == body

    def test_an_upload_may_be_empty(self, backend: Backend) -> None:
        upload(backend, KEY, b"")
        assert backend.head(KEY).size == 0
        assert backend.read(KEY, limit=0)[0] == b""

    def test_the_last_part_may_be_empty(self, backend: Backend) -> None:
        step = part_size(backend)
        body = data(step)
        name = backend.begin(KEY)
        receipts = [backend.put_part(KEY, name, 1, 0, view(body)), backend.put_part(KEY, name, 2, step, [])]
        assert backend.complete(KEY, name, receipts).size == step
        assert get(backend, KEY) == body

    def test_a_part_may_be_sent_again(self, backend: Backend, other: Backend) -> None:
        step = part_size(backend)
        body = data(2 * step + 9)
        name = backend.begin(KEY, size=len(body))
        receipts = store_parts(backend, KEY, name, body)
        again = [
            other.put_part(KEY, name, number, (number - 1) * step, view(body[(number - 1) * step : number * step]))
            for number in (3, 1)
        ]
        assert again == [receipts[2], receipts[0]]
        other.complete(KEY, name, [again[1], receipts[1], again[0]])
        assert get(backend, KEY) == body

    def test_completing_again_gives_the_same(self, backend: Backend, other: Backend) -> None:
        name = backend.begin(KEY)
        receipts = store_parts(backend, KEY, name, data(100))
        info = backend.complete(KEY, name, receipts)
        assert backend.complete(KEY, name, receipts) == self.seen(info)
        assert other.complete(KEY, name, receipts) == self.seen(info)
        assert get(backend, KEY) == data(100)

    def test_aborting_again_is_harmless(self, backend: Backend, other: Backend) -> None:
        name = backend.begin(KEY)
        store_parts(backend, KEY, name, data(100))
        backend.abort(KEY, name)
        backend.abort(KEY, name)
        other.abort(KEY, name)
        backend.abort(KEY, "no such upload")
        backend.abort("none/none", "no such upload")
        assert keys(backend) == []
        assert list(backend.uploads()) == []

    def test_aborting_a_finished_upload_leaves_the_object(self, backend: Backend) -> None:
        name = backend.begin(KEY)
        backend.complete(KEY, name, store_parts(backend, KEY, name, b"body"))
        backend.abort(KEY, name)
        assert backend.read(KEY, limit=10)[0] == b"body"

    def test_an_aborted_upload_takes_no_part_and_is_not_completed(self, backend: Backend) -> None:
        backend.put(KEY, view(b"body"))
        name = backend.begin(KEY)
        receipts = store_parts(backend, KEY, name, b"BODY")
        backend.abort(KEY, name)
        with pytest.raises(NotFoundError, match="upload"):
            backend.put_part(KEY, name, 1, 0, view(b"BODY"))
        with pytest.raises(NotFoundError, match="upload"):
            backend.complete(KEY, name, receipts)
        with pytest.raises(NotFoundError, match="upload"):
            backend.put_part(KEY, "no such upload", 1, 0, view(b"BODY"))
        assert backend.read(KEY, limit=10)[0] == b"body"

    def test_an_object_is_replaced_at_complete_and_not_before(self, backend: Backend, other: Backend) -> None:
        old = backend.put(KEY, view(b"old"))
        name = backend.begin(KEY, size=4)
        receipts = store_parts(backend, KEY, name, b"new!")
        assert other.read(KEY, limit=10) == (b"old", self.seen(old))
        assert list(other.list()) == [self.seen(old)]
        new = backend.complete(KEY, name, receipts)
        assert other.read(KEY, limit=10) == (b"new!", self.seen(new))

    def test_two_uploads_of_one_key_do_not_mix(self, backend: Backend) -> None:
        first, second = backend.begin(KEY), backend.begin(KEY)
        assert first != second
        of_first = store_parts(backend, KEY, first, b"first ")
        of_second = store_parts(backend, KEY, second, b"second")
        backend.complete(KEY, first, of_first)
        assert backend.read(KEY, limit=10)[0] == b"first "
        backend.complete(KEY, second, of_second)
        assert backend.read(KEY, limit=10)[0] == b"second"

    def test_receipts_of_another_upload_are_refused(self, backend: Backend) -> None:
        first, second = backend.begin(KEY), backend.begin(KEY)
        receipts = store_parts(backend, KEY, first, b"first")
        with pytest.raises(CorruptError):
            backend.complete(KEY, second, receipts)
        assert keys(backend) == []
        backend.abort(KEY, first)
        backend.abort(KEY, second)

    def test_an_upload_tells_when_it_last_received_bytes(self, backend: Backend, other: Backend) -> None:
        name = backend.begin(KEY)
        store_parts(backend, KEY, name, b"part")
        written = other.written(KEY, name)
        if self.dates_uploads:
            assert abs(written - time.time()) < 3600
        else:
            assert written == 0.0
        backend.abort(KEY, name)
        assert other.written(KEY, "no such upload") == 0.0

    def test_open_uploads_are_found_and_not_listed(self, backend: Backend, other: Backend) -> None:
        backend.put("a/b/done", view(b"x"))
        begun = {backend.begin(key): key for key in ("a/b/open", "a/b/open", "a/other", "c")}
        for name, key in begun.items():
            store_parts(backend, key, name, b"part")
        assert keys(other) == ["a/b/done"]
        found = list(other.uploads())
        assert {info.upload: info.key for info in found} == begun
        assert all(abs(info.started - time.time()) < 3600 for info in found)
        assert {info.upload for info in other.uploads("a/b/o")} == {n for n, key in begun.items() if key == "a/b/open"}
        assert list(other.uploads("a/b/open/")) == []
        for info in found:
            other.abort(info.key, info.upload)
        assert list(backend.uploads()) == []

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            (lambda parts: [], ConfigError),
            (lambda parts: parts[1:], CorruptError),
            (lambda parts: [parts[0], parts[2]], CorruptError),
            (lambda parts: [parts[1], parts[0], parts[2]], CorruptError),
            (lambda parts: [parts[0], parts[0], *parts[1:]], CorruptError),
            (
                lambda parts: [*parts[:2], PartReceipt(3, parts[2].offset, parts[2].size + 1, parts[2].tag)],
                CorruptError,
            ),
            (
                lambda parts: [*parts[:2], PartReceipt(3, parts[2].offset + 1, parts[2].size, parts[2].tag)],
                CorruptError,
            ),
            (lambda parts: [*parts, PartReceipt(4, parts[2].offset + parts[2].size, 5, parts[2].tag)], CorruptError),
        ],
        ids=["none", "no first", "hole", "disorder", "twice", "longer", "shifted", "one more"],
    )
    def test_parts_that_make_no_object_publish_nothing(
        self, backend: Backend, change: Callable[[list[PartReceipt]], list[PartReceipt]], error: type[Exception]
    ) -> None:
        old = backend.put(KEY, view(b"old"))
        name = backend.begin(KEY)
        body = data(3 * part_size(backend))
        receipts = store_parts(backend, KEY, name, body)
        with pytest.raises(error):
            backend.complete(KEY, name, change(receipts))
        assert list(backend.list()) == [self.seen(old)]
        backend.complete(KEY, name, receipts)  # the upload itself took no harm
        assert get(backend, KEY) == body

    # Ranges

    @pytest.mark.parametrize("length", [0, 1, PAGE, PAGE + 1, 300_000, 2_000_001])
    def test_a_range_fills_its_buffer_and_no_more(self, filled: Backend, length: int) -> None:
        around = b"\xa5" * 2 * PAGE
        with mmap.mmap(-1, 3 << 20) as memory, memoryview(memory) as whole:
            for shift, offset in itertools.product((0, 1, 512), (0, 1, 511, PAGE, PAGE + 1, 1_000_003, 2 << 20)):
                begin, end = PAGE + shift, PAGE + shift + length
                whole[:begin], whole[end : end + len(around)] = around[:begin], around
                filled.get_range(KEY, offset, whole[begin:end])
                assert whole[begin:end] == RANGES[offset : offset + length]
                assert whole[:begin] == around[:begin]
                assert whole[end : end + len(around)] == around

    @pytest.fixture
    def filled(self, backend: Backend) -> Backend:
        backend.put(KEY, view(RANGES))
        return backend

    @pytest.mark.parametrize(("back", "length"), [(0, 1), (1, 2), (PAGE, PAGE + 1), (len(b"x"), 1 << 20), (-5, 0)])
    def test_a_range_beyond_the_end_is_corrupt(self, filled: Backend, back: int, length: int) -> None:
        with pytest.raises(CorruptError, match=f"ends at {len(RANGES)}"):
            filled.get_range(KEY, len(RANGES) - back, memoryview(bytearray(length)))

    def test_the_end_of_an_object_is_read(self, filled: Backend) -> None:
        for length in (0, 1, PAGE, 300_001):
            into = bytearray(length)
            filled.get_range(KEY, len(RANGES) - length, memoryview(into))
            assert into == RANGES[len(RANGES) - length :]

    def test_a_range_is_of_the_version_that_is_asked_for(self, backend: Backend) -> None:
        first = backend.put(KEY, view(b"first"))
        into = bytearray(3)
        backend.get_range(KEY, 1, memoryview(into), if_match=first.etag)
        assert into == b"irs"
        second = backend.put(KEY, view(b"2nd"))
        for offset, length in ((0, 3), (1, 0), (2, 3), (5, 0)):  # it ends before some
            with pytest.raises(PreconditionError, match=KEY) as caught:
                backend.get_range(KEY, offset, memoryview(bytearray(length)), if_match=first.etag)
            assert not caught.value.transient
        backend.get_range(KEY, 0, memoryview(into), if_match=second.etag)
        assert into == b"2nd"
        backend.delete(KEY)
        with pytest.raises((NotFoundError, PreconditionError)):
            backend.get_range(KEY, 0, memoryview(into), if_match=second.etag)

    @pytest.mark.parametrize("length", [0, 1, PAGE, PAGE + 1, 300_001])
    @pytest.mark.parametrize("block", [1000, PAGE, 1 << 20])
    def test_a_range_streams_through_a_block(self, filled: Backend, length: int, block: int) -> None:
        with mmap.mmap(-1, block) as memory, memoryview(memory) as room:
            for offset in (0, PAGE, 1_000_003, len(RANGES) - length):
                pieces = []
                for piece in filled.stream_range(KEY, offset, length, room):
                    pieces.append(bytes(piece))
                    assert piece == room[: len(piece)]  # where the caller wants it
                    piece.release()
                assert b"".join(pieces) == RANGES[offset : offset + length]

    def test_a_stream_that_is_given_up_harms_nothing(self, filled: Backend) -> None:
        stream = filled.stream_range(KEY, 0, len(RANGES), memoryview(bytearray(100)))
        assert next(stream) == RANGES[:100]
        del stream
        assert get(filled, KEY) == RANGES

    def test_wrong_streams_are_refused(self, filled: Backend) -> None:
        room = memoryview(bytearray(1000))
        with pytest.raises(CorruptError, match=f"ends at {len(RANGES)}"):
            list(filled.stream_range(KEY, len(RANGES) - 10, 11, room))
        with pytest.raises(ConfigError, match="-1"):
            list(filled.stream_range(KEY, -1, 10, room))
        with pytest.raises(ConfigError, match="writable"):
            list(filled.stream_range(KEY, 0, 10, memoryview(b"x" * 10)))
        with pytest.raises(NotFoundError, match="absent"):
            list(filled.stream_range("absent", 0, 10, room))

    def test_a_stream_is_of_the_version_that_is_asked_for(self, backend: Backend) -> None:
        first = backend.put(KEY, view(b"first"))
        room = memoryview(bytearray(2))
        assert b"".join(map(bytes, backend.stream_range(KEY, 1, 4, room, if_match=first.etag))) == b"irst"
        backend.put(KEY, view(b"2nd"))
        for length in (0, 2):
            with pytest.raises(PreconditionError, match=KEY):
                list(backend.stream_range(KEY, 0, length, room, if_match=first.etag))

    def test_many_threads_read_at_once(self, filled: Backend, other: Backend) -> None:
        def read(index: int) -> bool:
            into = bytearray(400_000)
            (filled if index % 2 else other).get_range(KEY, index * 100_001, memoryview(into))
            return into == RANGES[index * 100_001 : index * 100_001 + 400_000]

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(read, range(12)))

    def test_wrong_ranges_are_refused(self, filled: Backend) -> None:
        with pytest.raises(ConfigError, match="-1"):
            filled.get_range(KEY, -1, memoryview(bytearray(1)))
        with pytest.raises(ConfigError, match="writable"):
            filled.get_range(KEY, 0, memoryview(b"x"))
        with pytest.raises(ConfigError, match="contiguous"):
            filled.get_range(KEY, 0, memoryview(bytearray(10))[::2])

    # Calls that are wrong

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_no_method_takes_a_bad_key(self, backend: Backend, key: str) -> None:
        receipt = PartReceipt(1, 0, 1)
        calls: list[Callable[[], object]] = [
            lambda: backend.put(key, view(b"x")),
            lambda: backend.read(key, limit=1),
            lambda: backend.head(key),
            lambda: backend.abort(key, "upload"),
            lambda: backend.begin(key),
            lambda: backend.put_part(key, "upload", 1, 0, view(b"x")),
            lambda: backend.complete(key, "upload", [receipt]),
            lambda: backend.get_range(key, 0, memoryview(bytearray(1))),
        ]
        for call in calls:
            with pytest.raises(ConfigError):
                call()
        assert keys(backend) == []

    @pytest.mark.parametrize("key", [*BAD_KEYS, "..", "/", "//"])
    def test_deleting_what_is_no_key_harms_no_other(self, backend: Backend, key: str) -> None:
        backend.put("a/b", view(b"x"))
        backend.put("b", view(b"x"))
        with contextlib.suppress(ConfigError):
            backend.delete(key)
        assert keys(backend) == ["a/b", "b"]

    @pytest.mark.parametrize("prefix", ["/", "/a", "../", "a/../b", "a//b"])
    def test_no_listing_leaves_the_root(self, backend: Backend, prefix: str) -> None:
        for listing in (backend.list, backend.uploads, lambda prefix: backend.pages(prefix, shallow=True)):
            with pytest.raises(ConfigError):
                list(listing(prefix))

    def test_what_breaks_the_limits_is_refused(self, backend: Backend) -> None:
        limits = backend.limits
        name = backend.begin(KEY)
        with mmap.mmap(-1, max(limits.put_max, limits.part_max) + 1) as sparse, memoryview(sparse) as whole:
            with pytest.raises(ConfigError, match=str(limits.put_max)), whole[: limits.put_max + 1] as large:
                backend.put(KEY, [large])
            with pytest.raises(ConfigError, match=str(limits.part_max)), whole[: limits.part_max + 1] as large:
                backend.put_part(KEY, name, 1, 0, [large])
        for number, offset in [(0, 0), (-1, 0), (limits.parts_max + 1, 0), (1, -limits.alignment)]:
            with pytest.raises(ConfigError, match="part"):
                backend.put_part(KEY, name, number, offset, view(b"x"))
        if limits.alignment > 1:
            with pytest.raises(ConfigError, match="multiple"):
                backend.put_part(KEY, name, 2, limits.alignment + 1, view(b"x"))
        backend.abort(KEY, name)
        assert keys(backend) == []

    def test_a_small_part_that_is_not_the_last_is_refused(self, backend: Backend) -> None:
        limits = backend.limits
        small = (limits.part_min - 1) // limits.alignment * limits.alignment
        name = backend.begin(KEY)
        receipts = [
            backend.put_part(KEY, name, 1, 0, view(data(small))),
            backend.put_part(KEY, name, 2, small, view(b"tail")),
        ]
        with pytest.raises(ConfigError, match="smaller"):
            backend.complete(KEY, name, receipts)
        assert keys(backend) == []
        backend.abort(KEY, name)

    def test_segments_must_be_contiguous_bytes(self, backend: Backend) -> None:
        name = backend.begin(KEY)
        for segment in (memoryview(bytes(10))[::2], memoryview(bytes(8)).cast("I")):
            with pytest.raises(ConfigError, match="contiguous"):
                backend.put(KEY, [segment])
            with pytest.raises(ConfigError, match="contiguous"):
                backend.put_part(KEY, name, 1, 0, [segment])
        backend.abort(KEY, name)
        assert keys(backend) == []

    # Buffers and instances

    def test_no_buffer_is_kept(self, backend: Backend) -> None:
        buffer = bytearray(data(2 * part_size(backend)))
        before = bytes(buffer)
        name = backend.begin(KEY)
        with memoryview(buffer) as whole:
            backend.put("put", [whole[: PAGE + 1]])
            receipt = backend.put_part(KEY, name, 1, 0, [whole[:PAGE], whole[PAGE:]])
        buffer.clear()  # BufferError if anybody still held a view
        backend.complete(KEY, name, [receipt])
        assert get(backend, KEY) == before
        assert get(backend, "put") == before[: PAGE + 1]
        into = bytearray(PAGE + 1)
        with memoryview(into) as whole:
            backend.get_range(KEY, 1, whole)
        into.clear()

    def test_opening_contacts_nothing(self, location: Location, wrap: Callable[[Location], Backend]) -> None:
        store = wrap(location)
        assert store.limits.part_max >= store.limits.part_min
        store.close()
        again = wrap(location)
        assert keys(again) == []
        again.close()


RANGES = data(4_100_001, seed=9)
