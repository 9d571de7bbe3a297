"""Copies from and to devices: no device is at hand here, so ``fake_cuda`` tells whether they keep the rules of CUDA.

On a machine that has one, ``tests/gpu`` does the same with CUDA itself.
"""

from __future__ import annotations

import threading
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3dlio import CheckpointStore, S3dlioError, UnsupportedError
from s3dlio.engine.threads import each
from s3dlio.tensors import ShardImage, flatten, plan_into, plan_layout
from s3dlio.tensors.cuda_copies import together
from s3dlio.tensors.torch_leaf import TorchTarget, tensor_target
from tests.store.live import open_store
from tests.tensors.fake_cuda import FakeCuda, Stream
from tests.tensors.shards import address_of, filled_torch, image_of, raw, save

SHAPE = (3, 5, 4)
KINDS = ("contiguous", "0-dim", "permuted", "sliced", "conj", "neg", "expanded")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def tensor_of(kind: str) -> torch.Tensor:
    base = filled_torch(torch.bfloat16, SHAPE)
    numbers = torch.arange(60).to(torch.complex64).reshape(SHAPE)
    return {
        "contiguous": base,
        "0-dim": base[1, 2, 3].clone(),
        "permuted": base.permute(2, 0, 1),
        "sliced": filled_torch(torch.float64, SHAPE)[::2, 1:, 1],
        "conj": numbers.conj(),
        "neg": numbers.conj().imag,
        "expanded": filled_torch(torch.int16, (1, 5)).expand(4, 5),
    }[kind]


def in_thread(work: Any) -> Any:
    """What ``work`` returns in a thread of its own, whose device is the first."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(30)
    return results[0]


def image(state: Any) -> tuple[ShardImage, bytearray]:
    flat = flatten(state)
    layout = plan_layout(flat)
    return ShardImage(flat.leaves, layout), bytearray(layout.total)


# device to host


@pytest.mark.parametrize("kind", KINDS)
def test_any_pieces_of_a_device_tensor_are_slices_of_the_whole(kind: str, fake: FakeCuda) -> None:
    tensor = tensor_of(kind)
    whole = image_of(flatten([tensor]).leaves[0])
    (leaf,) = flatten([fake.put(tensor)]).leaves
    assert leaf.address() is None

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(0, leaf.nbytes), max_size=6), st.integers(0, 9))
    def check(cuts: list[int], shift: int) -> None:
        memory = bytearray(leaf.nbytes + 16)
        for start, stop in pairwise(sorted({0, leaf.nbytes, *cuts})):
            leaf.copy_to(address_of(memory) + shift + start, start, stop)
        assert memory[shift : shift + leaf.nbytes] == whole
        assert not any(memory[:shift]) and not any(memory[shift + leaf.nbytes :])  # noqa: PT018

    check()


def test_the_order_of_a_copy(fake: FakeCuda) -> None:
    tensor = fake.put(torch.arange(10))
    with fake.using(fake.stream()):
        (leaf,) = flatten([tensor]).leaves
    in_thread(lambda: image_of(leaf))
    assert fake.noted("record", "wait", "copy", "synchronize") == [
        ("record", "stream 1"),  # the caller's, in its thread
        ("wait", "stream 2"),
        ("copy", "stream 2"),
        ("record", "stream 2"),
        ("synchronize", "stream 2"),
    ]
    assert fake.log[0][2] == "MainThread"
    assert {entry[2] for entry in fake.log[1:]} != {"MainThread"}


@pytest.mark.parametrize("kind", ["contiguous", "permuted"])
def test_what_the_caller_enqueued_before_comes_first(kind: str, fake: FakeCuda) -> None:
    tensor = fake.put(tensor_of(kind))
    training = fake.stream()
    with fake.using(training):
        training.enqueue(lambda: tensor.fill_(7))
        (leaf,) = flatten([tensor]).leaves
        training.enqueue(lambda: tensor.fill_(8))
    assert in_thread(lambda: image_of(leaf)) == raw(torch.full_like(tensor, 7))


def test_what_is_enqueued_while_the_state_is_read_comes_first(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading may enqueue work itself: a DTensor waits for the collective that makes it."""
    tensors = [fake.put(torch.zeros(4)) for _ in range(2)]
    pointer = torch.Tensor.data_ptr

    def reading(tensor: torch.Tensor) -> int:
        fake.current().enqueue(lambda: tensor.fill_(1))
        return pointer(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "data_ptr", reading)
        leaves = flatten(tensors).leaves
    assert [image_of(leaf) for leaf in leaves] == [raw(torch.ones(4))] * 2


def test_every_device_waits_for_its_own_work(fake: FakeCuda) -> None:
    tensors = [fake.put(torch.zeros(3), f"cuda:{number}") for number in (1, 2)]
    for number, tensor in enumerate(tensors):
        fake.current(tensor.device).enqueue(partial(tensor.fill_, number + 5))
    source, memory = image({"a": tensors[0], "b": torch.full((3,), 4.0), "c": tensors[1]})
    in_thread(lambda: source.copy_to(address_of(memory), 0, len(memory)))
    assert np.frombuffer(memory, "f4")[-9:].tolist() == [5, 5, 5, 4, 4, 4, 6, 6, 6]
    assert [stream.device.index for stream in fake.made] == [1, 2]


def test_the_leaves_of_a_range_are_waited_for_once(fake: FakeCuda) -> None:
    source, memory = image([fake.put(torch.full((3,), float(number))) for number in range(50)])
    source.copy_to(address_of(memory), 0, len(memory))
    assert len(fake.noted("copy")) == 50
    assert len(fake.noted("synchronize")) == 1
    assert len(fake.noted("wait")) == 1
    assert np.frombuffer(memory, "f4")[-150::3].tolist() == list(range(50))


def test_streams_are_used_again_and_by_one_thread_at_a_time(fake: FakeCuda) -> None:
    tensor = fake.put(filled_torch(torch.uint8, (4096,)))
    source, memory = image(tensor)
    begin = len(memory) - 4096
    for _ in range(3):
        source.copy_to(address_of(memory), 0, len(memory))
    assert len(fake.made) == 1
    meet = threading.Barrier(4)

    def part(number: int) -> None:
        with together():
            start = begin + number * 1024
            source.copy_to(address_of(memory) + start, start, start + 1024)
            meet.wait(30)

    memory[begin:] = bytes(4096)
    each(part, range(4), 4)
    assert memory[begin:] == raw(tensor)
    assert len(fake.made) == 4


def test_memory_in_use_is_noted_with_the_allocator(fake: FakeCuda) -> None:
    for kind in ("contiguous", "conj", "neg"):
        tensor = fake.put(tensor_of(kind))
        image_of(flatten([tensor]).leaves[0])
        assert fake.noted_for[tensor.untyped_storage().data_ptr()] == set(fake.made)


def test_after_an_error_nothing_is_under_way(fake: FakeCuda) -> None:
    """The slot is another's as soon as the error is out."""
    good, bad = fake.put(torch.full((3,), 1.0)), fake.put(torch.full((3,), 2.0))
    source, memory = image({"good": good, "bad": bad})
    with torch.no_grad():
        bad.untyped_storage().resize_(0)
    with pytest.raises(UnsupportedError, match="bad: its memory was moved or freed"):
        source.copy_to(address_of(memory), 0, len(memory))
    assert memory[-24:-12] == raw(good)


def test_a_copy_that_cannot_be_begun_is_named(fake: FakeCuda) -> None:
    source, memory = image({"model": {"w": fake.put(torch.ones(3))}})
    fake.failures["copy"] = [RuntimeError("CUDA error: out of memory")]
    with pytest.raises(S3dlioError, match=r"model\.w could not be copied: CUDA error: out of memory \(if it is no"):
        source.copy_to(address_of(memory), 0, len(memory))
    source.copy_to(address_of(memory), 0, len(memory))
    assert memory[-12:] == raw(torch.ones(3))


def test_a_copy_that_fails_underway_is_an_error_and_its_stream_not_used_again(fake: FakeCuda) -> None:
    source, memory = image([fake.put(torch.ones(3)), fake.put(torch.ones(2), "cuda:2")])
    fake.failures["synchronize"] = [RuntimeError("CUDA error: unspecified launch failure")]
    with pytest.raises(S3dlioError, match="copies between cuda:1 and the host failed: CUDA error: unspecified"):
        source.copy_to(address_of(memory), 0, len(memory))
    assert len(fake.noted("synchronize")) == 2  # the other device's too
    source.copy_to(address_of(memory), 0, len(memory))
    assert [stream.device.index for stream in fake.made] == [1, 2, 1]


def test_a_device_that_has_failed_before_is_told_when_the_state_is_read(fake: FakeCuda) -> None:
    fake.failures["record"] = [RuntimeError("CUDA error: device-side assert triggered")]
    with pytest.raises(S3dlioError, match="the work on cuda:1 before the save failed: CUDA error: device-side"):
        flatten([fake.put(torch.ones(3))])


def test_empty_tensors_and_tied_ones(fake: FakeCuda) -> None:
    tensor, empty = fake.put(torch.arange(6.0)), fake.put(torch.zeros(0, 3))
    saved = save({"a": tensor, "b": tensor, "c": tensor.view(2, 3), "e": empty})
    assert [leaf.name for leaf in saved.leaves] == ["a", "c", "e"]
    assert saved.data[-48:] == raw(tensor) * 2
    assert len(fake.noted("copy")) == 2


# host to device


@pytest.mark.parametrize("kind", ["contiguous", "0-dim", "permuted", "sliced"])
def test_any_pieces_fill_a_target_on_a_device(kind: str, fake: FakeCuda) -> None:
    tensor = tensor_of(kind)
    whole = image_of(flatten([tensor]).leaves[0])
    target, _ = tensor_target(0, fake.put(tensor))
    assert target.address() is None

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(0, target.nbytes), max_size=6), st.integers(0, 9), st.randoms(use_true_random=False))
    def check(cuts: list[int], shift: int, random: Any) -> None:
        tensor.zero_()
        source = bytearray(shift) + whole
        pieces = list(pairwise(sorted({0, target.nbytes, *cuts})))
        random.shuffle(pieces)
        for start, stop in pieces:
            target.copy_from(address_of(source) + shift + start, start, stop)
        assert raw_of(tensor) == whole

    check()


def test_a_load_waits_for_what_the_caller_enqueued(fake: FakeCuda) -> None:
    """A target's initialisation, still to run, would undo it; a forward pass, still to read, would see it."""
    saved = save([torch.arange(3.0)])
    tensor = fake.put(torch.zeros(3))
    training = fake.stream()
    with fake.using(training):
        training.enqueue(lambda: tensor.fill_(9))
        plan = plan_into(saved.tree, saved.table, [tensor])
    (target,) = plan.targets
    source = bytearray(raw(torch.arange(3.0)))
    in_thread(lambda: target.copy_from(address_of(source), 0, 12))
    training.synchronize()
    assert tensor.tolist() == [0, 1, 2]


def test_a_target_that_cannot_be_filled_is_told(fake: FakeCuda) -> None:
    tensor = fake.put(torch.zeros(3))
    source = bytearray(12)
    fake.failures["copy"] = [RuntimeError("CUDA error: out of memory")]
    with pytest.raises(S3dlioError, match="a tensor on cuda:1 could not be filled: CUDA error"):
        TorchTarget(0, tensor).copy_from(address_of(source), 0, 12)
    fake.failures["synchronize"] = [RuntimeError("CUDA error: unspecified launch failure")]
    with pytest.raises(S3dlioError, match="the work on cuda:1 before the load failed: CUDA error"):
        tensor_target(0, tensor)


# through a store


@pytest.fixture
def store(kept: CheckpointStore, tmp_path: Path) -> Any:
    with open_store(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with open_store(tmp_path_factory.mktemp("kept")) as made:
        made.save(0, b"")
        yield made


@pytest.mark.parametrize("how", ["save", "async", "deferred"])
def test_a_state_on_a_device_is_saved_as_it_was_at_the_call(how: str, store: CheckpointStore, fake: FakeCuda) -> None:
    weights = filled_torch(torch.bfloat16, (3 << 20,))  # several chunks
    wanted = {"w": weights.clone(), "t": weights[:6000].view(60, 100).T.clone(), "step": 3}
    fake.put(weights)
    training: Stream = fake.stream()
    with fake.using(training):
        state = {"w": weights, "t": weights[:6000].view(60, 100).T, "step": 3}
        if how == "save":
            store.save(1, state)
        elif how == "async":
            handle = store.save_async(1, state)
            training.enqueue(lambda: weights.fill_(0))  # the next step
            training.synchronize()
            handle.result(60)
        else:
            handle = store.save_async(1, state, defer_staging=True)
            training.enqueue(lambda: weights.fill_(0))  # runs once the training waits for it
            handle.wait_staged(60)
            training.synchronize()
            handle.result(60)
    loaded = store.load()
    assert loaded["step"] == 3
    assert all(raw(loaded[name]) == raw(wanted[name]) for name in "wt")


def test_a_state_is_loaded_onto_a_device(store: CheckpointStore, fake: FakeCuda) -> None:
    weights = filled_torch(torch.bfloat16, (2 << 20,))
    store.save(1, {"w": weights, "t": weights[:6000].view(60, 100)})
    target = {"w": fake.put(torch.zeros_like(weights)), "t": fake.put(torch.zeros(100, 60, dtype=torch.bfloat16)).T}
    loaded = store.load(into=target)
    assert loaded["w"] is target["w"]
    assert raw_of(target["w"]) == raw(weights)
    assert raw_of(target["t"]) == raw(weights[:6000])


def raw_of(tensor: torch.Tensor) -> bytes:
    """As ``raw``, of a tensor that is said to lie elsewhere, where nothing was left to wait for."""
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
