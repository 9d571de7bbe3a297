from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import pytest

from s3dlio.engine import backends
from s3dlio.engine.backends import insistence, memory, open_backend, retry_policy
from s3dlio.engine.backends.retry import REMOTE, RetryPolicy
from s3dlio.engine.contract import Location, ObjectInfo
from s3dlio.engine.errors import ConfigError, DependencyError, StorageError


def test_an_unknown_scheme_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'gopher'.*direct://.*file://"):
        open_backend(Location("gopher", "/folder"))


@pytest.mark.parametrize("root", ["relative/folder", "", "~/folder", "/nul\0"])
@pytest.mark.parametrize("scheme", ["file", "direct"])
def test_a_folder_must_be_an_absolute_path(scheme: str, root: str) -> None:
    with pytest.raises(ConfigError, match="absolute"):
        open_backend(Location(scheme, root))


@pytest.mark.parametrize(
    "location", [Location("file", "/folder", (("part_min", 1),)), Location("memory", "root", (("colour", 1),))]
)
def test_an_unknown_option_is_refused(location: Location) -> None:
    with pytest.raises(ConfigError, match="option"):
        open_backend(location)


def test_an_option_of_a_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="part_min='1'"):
        open_backend(Location("memory", "root", (("part_min", "1"),)))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.SCHEMES, "az", (".no_such_module", "azure"))
    with pytest.raises(DependencyError, match=r"no_such_module.*pip install 's3dlio\[azure\]'"):
        open_backend(Location("az", "account/container"))


def test_a_backend_is_traced_inside_the_retries(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "s3dlio.engine.backend")
    backend = open_backend(Location("memory", "test_backend_open"))
    backend.put("key", [memoryview(b"abc")])
    assert [record.getMessage().split()[:2] for record in caplog.records] == [["put", "'key'"]]
    open_backend(Location("memory", "test_backend_open"), trace=False).head("key")
    assert len(caplog.records) == 1
    memory.forget("test_backend_open")


def test_a_backend_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def head(self: memory.MemoryBackend, key: str) -> ObjectInfo:
        calls.append(key)
        raise StorageError("busy", transient=True)

    monkeypatch.setattr(memory.MemoryBackend, "head", head)
    backend = open_backend(Location("memory", "test_backend_open"), retry=RetryPolicy(attempts=3, base=0.0, cap=0.0))
    with pytest.raises(StorageError, match="failed 3 times"):
        backend.head("key")
    assert calls == ["key"] * 3
    memory.forget("test_backend_open")


@pytest.mark.parametrize(("scheme", "root"), [("s3", "bucket"), ("az", "account/box")])
def test_options_bound_the_insistence_on_an_object_store(scheme: str, root: str) -> None:
    def at(**options: float) -> Location:
        return Location(scheme, root, tuple(options.items()))

    assert retry_policy(at()) == REMOTE
    assert retry_policy(at(retry_deadline=7)) == replace(REMOTE, deadline=7.0)
    assert retry_policy(at(first_deadline=7.5)) == replace(REMOTE, first_deadline=7.5)
    assert insistence(at()) == REMOTE.deadline
    assert insistence(at(connect_timeout=1.0, read_timeout=100.0, retry_deadline=1000.0)) == 1101.0
    assert retry_policy(Location("file", "/x")) == RetryPolicy()


def test_only_the_module_of_the_scheme_is_imported() -> None:
    code = (
        "import sys\n"
        "from s3dlio.engine.backends import open_backend\n"
        "from s3dlio.engine.contract import Location\n"
        "open_backend(Location('memory', 'root'))\n"
        "print(*sorted(name.rpartition('.')[2] for name in sys.modules if '.engine.backends.' in name))\n"
        "print('numpy' in sys.modules, 'awscrt' in sys.modules)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split("\n")[0].split() == ["checks", "memory", "pace", "retry", "trace"]
    assert told.split("\n")[1] == "False False"
