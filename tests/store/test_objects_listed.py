"""Listings of objects, and what works by them: in order, page by page, and no request more than needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import s3dlio
from s3dlio import ConfigError, pools
from s3dlio.engine.contract import Page
from s3dlio.engine.pool import PoolControl
from tests.servers.azurite import Container
from tests.servers.proxy import FaultProxy
from tests.servers.s3_server import Bucket
from tests.store.live import contents
from tests.store.places import OnAzure, OnDirect, OnFiles, OnS3, Where

NAMES = ["B", "a!/1", "a.b", "a/1", "a/2/3", "a/2/4", "a0", "z/z/z/z", "é/1"]


@pytest.fixture(scope="module", autouse=True)
def kept() -> Iterator[None]:
    """The pool that the functions keep, ended after the last test."""
    s3dlio.exists("file:///dev/null/")
    yield
    pools.let_go()


def put_all(where: Where, *names: str) -> None:
    for name in names:
        s3dlio.put_bytes(where.uri(name), name.encode(), options=where.options)


def listed(where: Where, *arguments: Any) -> list[str]:
    """Names below the place; the folder is the first argument."""
    folder, *rest = arguments or ("",)
    return [uri.removeprefix(where.uri("")) for uri in s3dlio.list(where.uri(folder), *rest, options=where.options)]


class Everywhere:
    def test_all_stores_list_in_one_order(self, where: Where) -> None:
        put_all(where, *reversed(NAMES))
        assert listed(where, "", True) == sorted(NAMES)
        assert listed(where) == ["B", "a!/", "a.b", "a/", "a0", "z/", "é/"]

    def test_pages(self, where: Where, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """With two entries to a page all is as with thousands."""
        real, asked = PoolControl.list_page, []

        def small(self: PoolControl, prefix: str = "", *, limit: int | None = None, **given: Any) -> Page:
            asked.append(prefix)
            return real(self, prefix, limit=limit or 2, **given)

        monkeypatch.setattr(PoolControl, "list_page", small)
        names = [name for name in NAMES if name.isascii()]  # LocalStack loses others between pages
        put_all(where, *names, "other")
        assert listed(where, "", True) == sorted([*names, "other"])
        assert len(asked) >= len(names) // 2
        assert listed(where, "a/") == ["a/1", "a/2/"]
        paths = s3dlio.download(where.uri(""), tmp_path / "to", options=where.options)
        assert paths == [f"{tmp_path}/to/{name}" for name in sorted([*names, "other"])]
        assert contents(tmp_path / "to") == {name: name.encode() for name in [*names, "other"]}
        s3dlio.delete(where.uri("a"), recursive=True, options=where.options)
        assert listed(where, "", True) == [name for name in sorted([*names, "other"]) if not name.startswith("a/")]


class TestFiles(OnFiles, Everywhere):
    pass


class TestDirect(OnDirect, Everywhere):
    pass


class OnObjectStores:
    """What a file system cannot hold."""

    def write(self, where: Where, name: str, body: bytes = b"x") -> None:
        raise NotImplementedError

    def keys(self, where: Where) -> list[str]:
        raise NotImplementedError

    def test_names_that_no_file_can_have(self, where: Where, tmp_path: Path) -> None:
        for name in ("up/a", "up/b//c", "up//lead", "up/full/", "other"):
            self.write(where, name)
        assert listed(where, "up/", True) == ["up//lead", "up/a", "up/b//c", "up/full/"]
        assert listed(where, "up/") == ["up//", "up/a", "up/b/", "up/full/"]
        with pytest.raises(ConfigError) as caught:
            s3dlio.download(where.uri("up/"), tmp_path / "to", options=where.options)
        for name in ("up//lead", "up/b//c", "up/full/"):
            assert f"place/{name}'" in str(caught.value)
        assert "nothing was written" in str(caught.value)
        assert not (tmp_path / "to").exists()
        s3dlio.delete(where.uri("up/"), recursive=True, options=where.options)
        assert self.keys(where) == ["place/other"]

    def test_an_object_whose_name_is_also_a_folders(self, where: Where, tmp_path: Path) -> None:
        for name in ("up/a", "up/b", "up/b/c/d"):
            self.write(where, name)
        assert listed(where, "up/") == ["up/a", "up/b", "up/b/"]
        with pytest.raises(ConfigError, match="no file can be named like the object 'place/up/b'; nothing was written"):
            s3dlio.download(where.uri("up/"), tmp_path / "to", options=where.options)
        assert not (tmp_path / "to").exists()
        s3dlio.download(where.uri("up/"), tmp_path / "to", recursive=False, options=where.options)
        assert contents(tmp_path / "to") == {"a": b"x", "b": b"x"}

    def test_many_names_are_not_all_told(self, where: Where, tmp_path: Path) -> None:
        for number in range(7):
            self.write(where, f"up/{number}/")
        with pytest.raises(ConfigError, match=r"'place/up/4/' and 2 more; nothing"):
            s3dlio.download(where.uri("up/"), tmp_path / "to", options=where.options)

    def test_marks_of_folders(self, where: Where, tmp_path: Path) -> None:
        """Consoles make an empty object for a folder."""
        for name in ("up/", "up/empty/", "up/b/"):
            self.write(where, name, b"")
        assert s3dlio.exists(where.uri("up/empty/"), options=where.options)
        self.write(where, "up/b/c")
        assert listed(where, "up/") == ["up/b/", "up/empty/"]
        assert listed(where, "up/", True) == ["up/b/c"]
        s3dlio.download(where.uri("up/"), tmp_path / "to", options=where.options)
        assert contents(tmp_path / "to") == {"b/c": b"x"}
        s3dlio.delete(where.uri("up"), recursive=True, options=where.options)
        assert self.keys(where) == []

    def test_a_folder_is_looked_for_by_one_request_of_one_key(self, where: Where, proxy: FaultProxy) -> None:
        for name in ("up/a", "up/b/c", "up/d"):
            self.write(where, name)
        for folder, there in (("up/", True), ("none/", False)):
            assert s3dlio.exists(where.uri(folder), options=where.options) is there
            (request,) = proxy.log
            assert "max-keys=1&" in f"{request.query}&" or "maxresults=1&" in f"{request.query}&"
            proxy.clear()
        listed(where, "up/")
        (request,) = proxy.log
        assert "delimiter=%2F" in request.query

    def test_empty_objects_are_brought_without_a_request(self, where: Where, proxy: FaultProxy, tmp_path: Path) -> None:
        for number in range(5):
            self.write(where, f"up/{number}", b"")
        s3dlio.download(where.uri("up/"), tmp_path / "to", options=where.options)
        assert contents(tmp_path / "to") == {str(number): b"" for number in range(5)}
        assert len(proxy.log) == 1


class TestS3(OnS3, Everywhere):
    pass


class TestAzure(OnAzure, Everywhere):
    pass


class TestOddOnS3(OnObjectStores):
    @pytest.fixture
    def proxy(self, s3_proxy: FaultProxy) -> FaultProxy:
        return s3_proxy

    @pytest.fixture
    def where(self, s3_bucket: Bucket, proxy: FaultProxy) -> Where:
        self.bucket = s3_bucket
        return Where(f"{s3_bucket.uri}/place", s3_bucket.through(proxy.endpoint).options)

    def write(self, where: Where, name: str, body: bytes = b"x") -> None:
        self.bucket.write(f"place/{name}", body)

    def keys(self, where: Where) -> list[str]:
        return self.bucket.keys()

    def test_names_that_lead_elsewhere(self, where: Where, tmp_path: Path) -> None:
        for name in ("up/x/../y", "up/./z", "up/b\\c", "y", "up/y"):
            self.write(where, name)
        with pytest.raises(ConfigError, match=r"object 'place/up/\./z', 'place/up/b\\\\c', 'place/up/x/\.\./y'; noth"):
            s3dlio.download(where.uri("up/"), tmp_path / "to", options=where.options)
        s3dlio.delete(where.uri("up/"), recursive=True, options=where.options)
        assert self.keys(where) == ["place/y"]


class TestOddOnAzure(OnObjectStores):
    @pytest.fixture
    def proxy(self, az_proxy: FaultProxy) -> FaultProxy:
        return az_proxy

    @pytest.fixture
    def where(self, az_container: Container, proxy: FaultProxy) -> Where:
        self.container = az_container
        return Where(f"{az_container.uri}/place", az_container.through(proxy.endpoint).options)

    def write(self, where: Where, name: str, body: bytes = b"x") -> None:
        self.container.write(f"place/{name}", body)

    def keys(self, where: Where) -> list[str]:
        return self.container.keys()


def test_a_file_whose_name_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "a\\b").write_bytes(b"x")
    uri = f"file://{tmp_path}/up/"
    assert s3dlio.list(uri) == [f"{uri}a\\b"]
    with pytest.raises(ConfigError, match=r"no file can be named like the object 'up/a\\\\b'"):
        s3dlio.download(uri, tmp_path / "to")
    s3dlio.delete(uri, recursive=True)
    assert [*tmp_path.iterdir()] == []
