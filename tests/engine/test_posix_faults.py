"""What goes wrong below a POSIX store: full disk, limits, permissions, files in the way, no O_DIRECT, failing media.

Where the system can be made to fail it is (limits, permissions, files in the way); what it cannot be made to do here is
injected at the system call.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from s3dlio.engine.backends import durable
from s3dlio.engine.backends.oserrors import storage_error, translated
from s3dlio.engine.backends.posix import PosixBackend
from s3dlio.engine.errors import (
    AccessDeniedError,
    ConfigError,
    CorruptError,
    NotFoundError,
    StorageError,
    StorageFullError,
)
from tests.engine.conformance import data, get, keys, view


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(params=[False, True], ids=["file", "direct"])
def backend(request: pytest.FixtureRequest, root: Path) -> PosixBackend:
    return PosixBackend(str(root), direct=request.param)


def failing(number: int) -> Callable[..., Any]:
    """A system call that fails."""

    def call(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def in_child(code: str, *args: str) -> str:
    """What a fresh interpreter prints that runs ``code`` with a backend of ``args[0]``."""
    head = """
        import os, resource, sys
        from s3dlio.engine.backends.posix import PosixBackend
        from s3dlio.engine.errors import *
        backend = PosixBackend(sys.argv[1], direct=True)
        def told(call):
            try:
                call()
            except S3dlioError as error:
                print(type(error).__name__, error)
            else:
                print("no error")
    """
    script = textwrap.dedent(head) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# The meaning of errno


@pytest.mark.parametrize(
    ("number", "kind", "transient"),
    [
        (errno.ENOENT, NotFoundError, False),
        (errno.EACCES, AccessDeniedError, False),
        (errno.EPERM, AccessDeniedError, False),
        (errno.EROFS, AccessDeniedError, False),
        (errno.ENOSPC, StorageFullError, False),
        (errno.EDQUOT, StorageFullError, False),
        (errno.EFBIG, StorageFullError, False),
        (errno.EIO, StorageError, False),
        (errno.ENOTDIR, StorageError, False),
        (errno.ENAMETOOLONG, StorageError, False),
        (errno.EMFILE, StorageError, True),
        (errno.ENOMEM, StorageError, True),
        (errno.ESTALE, StorageError, True),
        (errno.ETIMEDOUT, StorageError, True),
    ],
)
def test_what_an_errno_means(number: int, kind: type[StorageError], transient: bool) -> None:
    error = storage_error(OSError(number, os.strerror(number)), "put of /store/key")
    assert type(error) is kind
    assert error.transient is transient
    assert str(error).startswith(f"put of /store/key: {os.strerror(number)}")


def test_our_own_errors_pass_unchanged() -> None:
    ours = NotFoundError("ours")
    with pytest.raises(NotFoundError) as caught, translated("something else"):
        raise ours
    assert caught.value is ours
    with pytest.raises(ZeroDivisionError), translated("something else"):
        raise ZeroDivisionError


# No space


def test_an_upload_that_does_not_fit_is_refused_before_it_begins(backend: PosixBackend, root: Path) -> None:
    backend.put("old", view(b"old"))
    with pytest.raises(StorageFullError, match=r"begin of .*a/key.* are needed and .* are left"):
        backend.begin("a/key", size=1 << 60)
    assert list(root.iterdir()) == [root / "old"]
    with pytest.raises(ConfigError, match="-1"):
        backend.begin("a/key", size=-1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_reserve_that_is_refused(
    backend: PosixBackend, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    answers = [errno.EINTR, number]
    monkeypatch.setattr(durable, "_fallocate", lambda *_: -1)
    monkeypatch.setattr("ctypes.get_errno", lambda: answers.pop(0))
    with pytest.raises(StorageFullError, match=os.strerror(number)):
        backend.begin("a/key", size=10)
    assert list(root.iterdir()) == []


def test_a_full_disk_leaves_the_old_object(backend: PosixBackend, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = backend.put("key", view(b"old"))
    name = backend.begin("key")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", failing(errno.ENOSPC))
        with pytest.raises(StorageFullError, match="free space"):
            backend.put("key", view(b"new"))
        with pytest.raises(StorageFullError, match=r"part 1 of .*key: No space"):
            backend.put_part("key", name, 1, 0, view(b"new"))
    assert backend.read("key", limit=9) == (b"old", old)
    assert [info.upload for info in backend.uploads()] == [name]  # the failed put left nothing
    backend.complete("key", name, [backend.put_part("key", name, 1, 0, view(b"new"))])  # space was made meanwhile
    assert backend.read("key", limit=9)[0] == b"new"


def test_a_disk_that_fills_in_the_middle_of_a_write(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def write(fd: int, views: Sequence[memoryview], offset: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, [views[0][:8192]], offset)

    monkeypatch.setattr(os, "pwritev", write)
    name = backend.begin("key")
    with pytest.raises(StorageFullError):
        backend.put_part("key", name, 1, 0, view(data(100_000)))
    assert keys(backend) == []
    backend.abort("key", name)


def test_the_limit_of_file_sizes(root: Path) -> None:
    PosixBackend(str(root), direct=True).put("key", view(b"old"))
    told = in_child(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        body = [memoryview(bytes(50_000))]
        told(lambda: backend.begin("key", size=50_000))
        told(lambda: backend.put("key", body))
        name = backend.begin("key")
        told(lambda: backend.put_part("key", name, 1, 0, body))
        print(bytes(backend.read("key", limit=9)[0]))
        backend.abort("key", name)
        print(*os.listdir(sys.argv[1]))
        """,
        str(root),
    ).splitlines()
    assert all(line.startswith("StorageFullError") and "ulimit -f" in line for line in told[:3]), told
    assert told[3:] == ["b'old'", "key"]


def test_too_many_open_files_may_pass(root: Path) -> None:
    PosixBackend(str(root), direct=True).put("key", view(b"old"))
    told = in_child(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        try:
            backend.head("key")
            backend.read("key", limit=9)
        except StorageError as error:
            print(error.transient, error)
        """,
        str(root),
    )
    assert told.startswith("True read of")
    assert "ulimit -n" in told


# Permissions


def test_what_is_forbidden_is_told(root: Path) -> None:
    """Root may do everything, so the child gives up its capabilities."""
    (root / "closed").mkdir(parents=True)
    (root / "closed/key").write_bytes(b"body")
    (root / "read-only").mkdir()
    (root / "read-only/key").write_bytes(b"body")
    (root / "closed/key").chmod(0)
    (root / "closed").chmod(0)
    (root / "read-only").chmod(0o555)
    told = in_child(
        """
        import ctypes
        version_3, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version_3, none) == 0
        body = [memoryview(b"new")]
        told(lambda: backend.put("read-only/key", body))
        told(lambda: backend.put("read-only/new", body, if_absent=True))
        told(lambda: backend.begin("read-only/key"))
        told(lambda: backend.delete("read-only/key"))
        told(lambda: backend.read("closed/key", limit=9))
        told(lambda: backend.get_range("closed/key", 0, memoryview(bytearray(1))))
        told(lambda: backend.head("closed/key"))
        told(lambda: list(backend.list()))
        told(lambda: list(backend.uploads("closed/")))
        told(lambda: print(bytes(backend.read("read-only/key", limit=9)[0])))
        """,
        str(root),
    ).splitlines()
    (root / "closed").chmod(0o700)
    assert len(told) == 11
    assert all(line.startswith("AccessDeniedError") and str(root) in line for line in told[:9]), told
    assert told[9:] == ["b'body'", "no error"]


def test_a_read_only_file_system(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def open_(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, mode)

    backend.put("key", view(b"old"))
    monkeypatch.setattr(os, "open", open_)
    calls: list[Callable[[], object]] = [
        lambda: backend.put("key", view(b"new")),
        lambda: backend.begin("key"),
        lambda: backend.delete("key"),
    ]
    for call in calls:
        with pytest.raises(AccessDeniedError, match="read-only"):
            call()
    assert backend.read("key", limit=9)[0] == b"old"


# Files in the way


def test_the_root_is_a_file(backend: PosixBackend, root: Path) -> None:
    root.write_bytes(b"not a folder")
    calls: list[Callable[[], object]] = [
        lambda: backend.put("key", view(b"x")),
        lambda: backend.begin("key"),
        lambda: backend.read("key", limit=1),
        lambda: backend.head("key"),
        lambda: backend.get_range("key", 0, memoryview(bytearray(1))),
        lambda: backend.delete("key"),
        lambda: list(backend.list()),
        lambda: list(backend.list("a/b")),
        lambda: list(backend.uploads()),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="file") as caught:
            call()
        assert not isinstance(caught.value, NotFoundError)
        assert not caught.value.transient
    assert root.read_bytes() == b"not a folder"


def test_a_file_stands_where_a_folder_is_needed(backend: PosixBackend) -> None:
    backend.put("a", view(b"x"))
    for write in (lambda: backend.put("a/b", view(b"y")), lambda: backend.begin("a/b"), lambda: backend.begin("a/b/c")):
        with pytest.raises(StorageError, match="a file stands where a folder is needed"):
            write()
    assert backend.read("a", limit=1)[0] == b"x"


def test_a_folder_stands_where_the_object_would_be(backend: PosixBackend) -> None:
    backend.put("a/b", view(b"x"))
    name = backend.begin("a")
    part = backend.put_part("a", name, 1, 0, view(b"y"))
    writes: list[Callable[[], object]] = [
        lambda: backend.put("a", view(b"y")),
        lambda: backend.complete("a", name, [part]),
    ]
    for write in writes:
        with pytest.raises(StorageError, match="folder") as caught:
            write()
        assert not caught.value.transient
    backend.abort("a", name)
    assert keys(backend) == ["a/b"]
    assert list(backend.uploads()) == []


# O_DIRECT refused


@pytest.fixture(params=["when turned on", "by the write and the read"])
def refusing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without O_DIRECT, of either kind."""
    if request.param == "when turned on":
        monkeypatch.setattr("s3dlio.engine.backends.direct_io.go_direct", lambda fd: False)
        return
    for name in ("pwritev", "preadv"):
        real = getattr(os, name)

        def call(fd: int, views: Sequence[memoryview], *rest: int, real: Callable[..., int] = real) -> int:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(fd, views, *rest)

        monkeypatch.setattr(os, name, call)


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("direct", [False, True])
def test_without_o_direct_the_store_works_and_direct_says_so_once(
    root: Path, direct: bool, caplog: pytest.LogCaptureFixture
) -> None:
    body = data(700_001)
    for key in ("a", "b"):
        backend = PosixBackend(str(root), direct=direct)  # as by another lane: told once all the same
        name = backend.begin(key, size=len(body))
        backend.complete(key, name, [backend.put_part(key, name, 1, 0, view(body))])
        backend.put(f"{key}-put", view(body))
        with open(root / key, "rb") as file:  # so that a read finds it cold
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert get(backend, key) == body
        assert get(backend, f"{key}-put") == body
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in told] == ["s3dlio.engine.backend"] * direct
    assert all(str(root) in record.getMessage() and "O_DIRECT" in record.getMessage() for record in told)


def test_with_o_direct_nothing_is_told(backend: PosixBackend, caplog: pytest.LogCaptureFixture) -> None:
    backend.put("key", view(data(700_001)))
    assert get(backend, "key") == data(700_001)
    assert caplog.records == []


def test_the_cache_serves_file_and_not_direct(
    backend: PosixBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir()
    (root / "key").write_bytes(data(700_001))  # through the cache, so it is warm
    past_cache: list[int] = []
    real = os.preadv

    def read(fd: int, views: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            past_cache.append(offset)
        return real(fd, views, offset, flags)

    monkeypatch.setattr(os, "preadv", read)
    assert get(backend, "key") == data(700_001)
    assert bool(past_cache) is backend._route._direct


# Failing media


def test_a_failing_write_is_not_worth_another_try(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    name = backend.begin("key")
    monkeypatch.setattr(os, "pwritev", failing(errno.EIO))
    with pytest.raises(StorageError, match="device failed") as caught:
        backend.put_part("key", name, 1, 0, view(b"body"))
    assert not caught.value.transient
    backend.abort("key", name)


def test_a_failing_read(backend: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.put("key", view(data(700_001)))
    monkeypatch.setattr(os, "preadv", failing(errno.EIO))
    with pytest.raises(StorageError, match="device failed"):
        get(backend, "key")
    with pytest.raises(StorageError, match="device failed"):
        backend.read("key", limit=1 << 20)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EINTR])
def test_what_failed_to_be_fsynced_is_never_published(
    backend: PosixBackend, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    old = backend.put("key", view(b"old"))
    name = backend.begin("key")
    parts = [backend.put_part("key", name, 1, 0, view(b"new"))]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(number))
        with pytest.raises(StorageError, match="fsync") as caught:
            backend.complete("key", name, parts)
        assert not caught.value.transient
        with pytest.raises(StorageError, match="fsync"):
            backend.put("key", view(b"new"))
    with pytest.raises(NotFoundError):  # a second fsync could succeed without the bytes
        backend.complete("key", name, parts)
    assert backend.read("key", limit=9) == (b"old", old)
    assert list(backend.uploads()) == []


def test_a_part_through_the_cache_that_fails_to_be_synced(
    backend: PosixBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3dlio.engine.backends.direct_io.go_direct", lambda fd: False)
    name = backend.begin("key")
    monkeypatch.setattr(os, "fdatasync", failing(errno.EIO))
    with pytest.raises(StorageError, match="fsync") as caught:
        backend.put_part("key", name, 1, 0, view(b"new"))
    assert not caught.value.transient
    backend.abort("key", name)


# Files that change under a read


def test_a_file_cut_during_a_read_is_corrupt(
    backend: PosixBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.put("key", view(data(700_001)))
    real = os.preadv

    def read(fd: int, *rest: Any) -> int:
        os.truncate(root / "key", 300_000)
        return real(fd, *rest)

    monkeypatch.setattr(os, "preadv", read)
    with pytest.raises(CorruptError, match="ends at 300000"):
        backend.get_range("key", 0, memoryview(bytearray(700_001)))
    os.truncate(root / "key", 700_001)
    with pytest.raises(CorruptError, match="shorter"):
        backend.read("key", limit=1 << 20)


def test_an_upload_cut_by_somebody_is_corrupt(backend: PosixBackend, root: Path) -> None:
    name = backend.begin("key")
    part = backend.put_part("key", name, 1, 0, view(data(9000)))
    (aside,) = root.iterdir()
    os.truncate(aside, 8999)
    with pytest.raises(CorruptError, match="holds 8999 bytes, its parts make 9000"):
        backend.complete("key", name, [part])
    backend.abort("key", name)
