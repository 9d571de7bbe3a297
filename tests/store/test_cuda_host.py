"""Page-locking through CUDA's runtime: no device is at hand, so the runtime here is a small fake that does as told."""

from __future__ import annotations

import ctypes
import logging
import mmap
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from s3dlio import cuda_host
from s3dlio.cuda_host import CudaHost, registrar
from tests.store.live import open_store

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


class FakeTorch:
    """The parts of torch that registering needs; ``codes`` are the next results, then all is well."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)
        self.calls: list[tuple[Any, ...]] = []
        self.pending = 0  # the last error, until somebody takes it
        self.contexts = {2}  # devices that are in use
        self.device_now = 2
        self.cuda = self
        self._C = self

    def _result(self, *call: Any) -> int:
        self.calls.append((*call, self.device_now))
        self.pending = self.codes.pop(0) if self.codes else 0
        return self.pending

    def cudart(self) -> FakeTorch:
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.contexts.add(self.device_now)
        return self._result("register", address, size, flags)

    def cudaHostUnregister(self, address: int) -> int:
        return self._result("unregister", address)

    def cudaGetErrorString(self, code: int) -> str:
        return f"error number {code}"

    def is_initialized(self) -> bool:
        return True

    def _cuda_hasPrimaryContext(self, device: int) -> bool:
        return device in self.contexts

    def current_device(self) -> int:
        return self.device_now

    def device_count(self) -> int:
        return 4

    @contextmanager
    def device(self, device: int) -> Iterator[None]:
        before, self.device_now = self.device_now, device
        yield
        self.device_now = before

    def ones(self, *_: Any, device: str) -> FakeTorch:
        assert device == "cuda"
        return self

    def neg_(self) -> None:
        """A kernel: what was pending is taken for its own failure."""
        error, self.pending = self.pending, 0
        if error:
            raise RuntimeError(f"CUDA error {error}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTorch:
    """One whose runtime is linked into it."""
    monkeypatch.setattr(cuda_host, "_RUNTIMES", {})
    return FakeTorch()


def test_memory_is_registered_for_all_devices_and_let_go(fake: FakeTorch) -> None:
    host = CudaHost(fake)
    assert host.register(4096, 8192)
    assert host.unregister(4096)
    assert fake.calls == [("register", 4096, 8192, 1, 2), ("unregister", 4096, 2)]


def test_a_refusal_is_told_once_and_taken_from_cuda(fake: FakeTorch, caplog: pytest.LogCaptureFixture) -> None:
    fake.codes = [2, 2]
    host = CudaHost(fake)
    with caplog.at_level(logging.INFO, "s3dlio"):
        assert not host.register(4096, 8192)
        assert fake.pending == 0
        assert not host.register(4096, 8192)
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert told.getMessage().startswith(
        "8192 bytes of memory could not be page-locked for CUDA (cudaHostRegister: error number 2): copies"
    )
    assert host.register(4096, 8192)  # it is tried again, with what memory there is then


def test_a_device_that_has_failed_before_is_a_refusal(
    fake: FakeTorch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: int) -> int:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(fake, "cudaHostRegister", fail)
    assert not CudaHost(fake).register(4096, 8192)
    assert "cudaHostRegister: CUDA error: device-side assert" in caplog.text


@pytest.mark.parametrize(("code", "gone"), [(0, True), (4, True), (713, True), (719, False)])
def test_whether_memory_was_let_go(fake: FakeTorch, code: int, gone: bool, caplog: pytest.LogCaptureFixture) -> None:
    fake.codes = [code]
    assert CudaHost(fake).unregister(4096) is gone
    assert fake.pending == 0
    assert [record.levelname for record in caplog.records] == ([] if gone else ["WARNING"])


def test_no_device_is_taken_into_use_for_it(fake: FakeTorch) -> None:
    """A thread starts on device 0, where this rank may have nothing to do."""
    fake.device_now = 0
    CudaHost(fake).register(4096, 8192)
    assert (fake.contexts, fake.calls[0][-1], fake.device_now) == ({2}, 2, 0)


def test_where_none_is_in_use_the_present_device_is_taken(fake: FakeTorch) -> None:
    fake.contexts, fake.device_now = set(), 3
    CudaHost(fake).register(4096, 8192)
    assert fake.contexts == {3}


def test_the_error_is_taken_from_the_runtime_that_is_loaded(fake: FakeTorch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library stands for CUDA's: that it was called, and no other copy of it, is told by its random numbers."""
    libc = ctypes.CDLL(None)
    libc.srand(1)
    drawn = [libc.rand(), libc.rand()]
    monkeypatch.setattr(cuda_host, "_RUNTIMES", {"libc.so": "rand"})
    monkeypatch.setattr(fake, "neg_", None)  # no kernel is needed
    fake.codes = [2]
    libc.srand(1)
    assert not CudaHost(fake).register(4096, 8192)
    assert libc.rand() == drawn[1]


def test_what_only_looks_like_a_runtime_is_passed_over(
    fake: FakeTorch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_host, "_RUNTIMES", {"libcudart.so": "cudaGetLastError", "libc.so": "no_such_function"})
    path = tmp_path / "libcudart.so.12"
    path.write_bytes(bytes(4096))
    fake.codes = [2]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ):
        assert not CudaHost(fake).register(4096, 8192)
    assert fake.pending == 0


def test_only_where_torch_uses_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_host, "_host", None)
    assert registrar() is None  # this torch has no CUDA
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert registrar() is registrar() is not None
    monkeypatch.delattr(torch, "cuda")  # it is just being imported
    assert registrar() is None
    monkeypatch.setitem(sys.modules, "torch", None)
    assert registrar() is None


def test_a_store_registers_when_it_is_warmed_up_and_lets_go_when_it_is_closed(
    tmp_path: Path, fake: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path, memory=8 * MIB, workers=1) as store:
        assert store.warmup(2 * MIB) == 2 * MIB
        monkeypatch.setattr(cuda_host, "registrar", lambda: CudaHost(fake))  # now CUDA is initialised
        assert store.warmup(3 * MIB) == 3 * MIB
        address = store._use_pool().arena.address(0)
        assert fake.calls == [("register", address, 3 * MIB, 1, 2)]
    assert fake.calls[1:] == [("unregister", address, 2)]


def test_a_store_saves_where_nothing_can_be_page_locked(
    tmp_path: Path, fake: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.codes = [2]
    monkeypatch.setattr(cuda_host, "registrar", lambda: CudaHost(fake))
    with open_store(tmp_path, memory=8 * MIB, workers=1) as store:
        assert store.warmup(3 * MIB) == 3 * MIB
        store.save(1, {"w": torch.arange(1000)})
        assert torch.equal(store.load()["w"], torch.arange(1000))
    assert [call[0] for call in fake.calls] == ["register"]


def test_an_exit_without_close_lets_go_while_python_runs(tmp_path: Path) -> None:
    script = f"""
        import sys
        from s3dlio import CheckpointStore, cuda_host
        class Locks:
            def register(self, address, size):
                print("register")
                return True
            def unregister(self, address):
                print("unregister", sys.is_finalizing())
                return True
        cuda_host.registrar = Locks
        store = CheckpointStore("file://{tmp_path}", memory=8 << 20, workers=1, chunk_size=1 << 20)
        store.warmup()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (done.stdout.split("\n"), done.returncode) == (["register", "unregister False", ""], 0), done.stderr


def test_it_starts_nothing_by_itself(tmp_path: Path) -> None:
    script = f"""
        import sys
        from s3dlio import CheckpointStore
        with CheckpointStore("file://{tmp_path}", memory=8 << 20, workers=1, chunk_size=1 << 20) as store:
            store.warmup()
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=True)
