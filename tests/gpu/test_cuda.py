"""With CUDA itself, by `make test-gpu` on a machine that has a device: what ``tests/tensors/test_cuda_copies`` and
``tests/store/test_cuda_host`` check with fakes elsewhere."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from s3dlio import CheckpointStore
from s3dlio.cuda_host import CudaHost
from s3dlio.engine.source import view
from tests.store.live import open_store
from tests.tensors.shards import filled_torch, raw

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
MIB = 1 << 20
LONG = 200_000_000  # clock cycles: a tenth of a second
cuda: Any = torch.cuda  # much of it has no types


@pytest.fixture(scope="module", autouse=True)
def device() -> torch.device:
    """A device in use, before any test looks for what it leaves behind."""
    if not cuda.is_available():
        pytest.fail("these tests need a CUDA device, and a torch that is built for it")
    found = torch.device("cuda:0")
    stream = cuda.Stream(found)
    with cuda.stream(stream):
        torch.ones(1000, device=found).neg_().cpu()
    cuda.synchronize()
    return found


@pytest.fixture(scope="module")
def kept(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointStore]:
    with open_store(tmp_path_factory.mktemp("kept")) as made:
        made.save(0, {"w": torch.ones(3, device=device)})
        yield made


@pytest.fixture
def store(kept: CheckpointStore, tmp_path: Path) -> Iterator[CheckpointStore]:
    with open_store(tmp_path) as made:
        yield made


def state_on(device: torch.device) -> dict[str, Any]:
    weights = filled_torch(torch.bfloat16, (5 << 20,)).to(device)  # ten chunks
    numbers = torch.arange(60, device=device).to(torch.complex64).reshape(3, 5, 4)
    return {
        "w": weights,
        "float8": filled_torch(torch.float8_e4m3fn, (1001,)).to(device),
        "t": weights[: 6 << 10].view(64, 96).T,
        "strided": filled_torch(torch.float64, (1 << 20,)).to(device)[::2],
        "conj": numbers.conj(),
        "neg": numbers.conj().imag,
        "zero": torch.tensor(2.5, device=device),
        "empty": torch.zeros(0, 3, device=device),
        "bool": torch.arange(9, device=device) % 2 == 0,
        "host": torch.arange(5),
        "step": 7,
    }


def on_host(state: dict[str, Any]) -> dict[str, bytes]:
    return {name: raw(value) for name, value in state.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("warm", [False, True], ids=["pageable", "page-locked"])
@pytest.mark.parametrize("how", ["save", "async", "deferred"])
def test_a_state_comes_back_as_it_was(how: str, warm: bool, store: CheckpointStore, device: torch.device) -> None:
    state = state_on(device)
    wanted = on_host(state)
    if warm:
        store.warmup()
    if how == "save":
        store.save(1, state)
    else:
        store.save_async(1, state, defer_staging=how == "deferred").result(60)
    assert on_host(store.load()) == wanted


def test_the_next_step_may_begin_when_save_async_returns(store: CheckpointStore, device: torch.device) -> None:
    state = state_on(device)
    wanted = on_host(state)
    handle = store.save_async(1, state)
    for name in ("w", "float8", "strided", "zero"):
        state[name].zero_()
    handle.result(60)
    assert on_host(store.load()) == wanted


@pytest.mark.parametrize("defer", [False, True])
@pytest.mark.parametrize("own_stream", [False, True])
def test_work_that_is_still_to_run_at_the_call_is_in_the_save(
    own_stream: bool, defer: bool, store: CheckpointStore, device: torch.device
) -> None:
    weights = torch.zeros(4 << 20, device=device)
    strided = torch.zeros(1 << 20, device=device)[::2]
    cuda.synchronize()
    stream = cuda.Stream(device) if own_stream else cuda.default_stream(device)
    with cuda.stream(stream):
        cuda._sleep(LONG)
        weights.fill_(3)
        strided.fill_(4)
        handle = store.save_async(1, {"w": weights, "s": strided}, defer_staging=defer)
    handle.wait_staged(60)
    weights.zero_()
    handle.result(60)
    loaded = store.load()
    assert bool((loaded["w"] == 3).all())
    assert bool((loaded["s"] == 4).all())


@pytest.mark.parametrize("own_stream", [False, True])
def test_a_state_is_loaded_onto_a_device(own_stream: bool, store: CheckpointStore, device: torch.device) -> None:
    weights = filled_torch(torch.bfloat16, (4 << 20,))
    store.save(1, {"w": weights, "t": weights[:6144].view(64, 96)})
    target = {
        "w": torch.empty(4 << 20, dtype=torch.bfloat16, device=device),
        "t": torch.empty(96, 64, dtype=torch.bfloat16, device=device).T,
    }
    stream = cuda.Stream(device) if own_stream else cuda.default_stream(device)
    with cuda.stream(stream):
        cuda._sleep(LONG)
        for tensor in target.values():
            tensor.zero_()  # still to run when the load begins
        loaded = store.load(into=target)
        doubled = loaded["w"] * 2  # right behind it
    cuda.synchronize()
    assert loaded["w"] is target["w"]
    assert raw(target["w"]) == raw(weights)
    assert raw(target["t"]) == raw(weights[:6144])
    assert raw(doubled) == raw(weights * 2)


def test_what_is_warm_is_page_locked_until_the_store_is_closed(device: torch.device, tmp_path: Path) -> None:
    with open_store(tmp_path, memory=32 * MIB, workers=1) as store:
        assert store.warmup(16 * MIB) == 16 * MIB
        arena = store._use_pool().arena
        pinned = [
            torch.frombuffer(view(arena.address(slot), arena.slot_size), dtype=torch.uint8).is_pinned()
            for slot in (0, 15, 16)
        ]
        assert pinned == [True, True, False]
        store.save(1, {"w": torch.ones(MIB, device=device)})
        address = arena.address(0)
    code = int(cuda.cudart().cudaHostUnregister(address))
    CudaHost(torch)._clear()
    assert code != 0, "it was still registered"
    torch.ones(3, device=device).neg_()


def test_a_refusal_is_not_taken_for_the_failure_of_the_next_kernel(
    device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    assert not CudaHost(torch).register(0, 4096)
    assert "could not be page-locked" in caplog.text
    assert torch.ones(3, device=device).neg_().tolist() == [-1, -1, -1]


def run(script: str, tmp_path: Path) -> None:
    code = f"import os, sys, torch\nfrom s3dlio import CheckpointStore\nfolder = {str(tmp_path)!r}\n"
    options = "memory=32 << 20, workers=1, chunk_size=1 << 20"
    code += f"store = CheckpointStore('file://' + folder, {options})\n" + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "page-locked memory is kept" not in done.stderr


def test_a_forked_child_and_an_exit_without_close(tmp_path: Path) -> None:
    run(
        """
        weights = torch.ones(1 << 20, device="cuda")
        store.warmup()
        store.save(1, {"w": weights})
        child = os.fork()
        if child == 0:
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        store.save(2, {"w": weights})
        """,
        tmp_path,
    )


def test_no_context_is_made_on_the_first_device(tmp_path: Path) -> None:
    if cuda.device_count() < 2:
        pytest.skip("needs two devices")
    run(
        """
        weights = torch.ones(8 << 20, device="cuda:1")
        store.warmup()
        store.save(1, {"w": weights, "t": weights.view(2048, 4096).T})
        store.load(into={"w": weights, "t": weights.clone().view(2048, 4096).T})
        assert not torch._C._cuda_hasPrimaryContext(0)
        store.close()
        """,
        tmp_path,
    )
