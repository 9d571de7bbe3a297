"""torch DCP in a world of one, on files: what goes in comes out, what cannot is refused, what is damaged is found."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from s3dlio import CheckpointStore
from s3dlio.engine.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptError,
    PreconditionError,
    S3dlioError,
    UnsupportedError,
)
from s3dlio.frameworks.dcp import (
    BinaryPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3dlioStorageReader,
    S3dlioStorageWriter,
    shared,
    shutdown,
)
from s3dlio.frameworks.dcp import writer as writer_module
from tests.frameworks.dcp_states import MIB, SMALL, bits, hollow, odd, same

dcp: Any = torch.distributed.checkpoint
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module", autouse=True)
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The module's workers, which run before the first test's leak check looks."""
    place = tmp_path_factory.mktemp("pool")
    dcp.save({"x": 1}, storage_writer=S3dlioStorageWriter(place, **SMALL), no_dist=True)
    yield
    shutdown()


@pytest.fixture
def arena_is_free() -> Iterator[None]:
    """The test must give back every slot."""
    yield
    arena = shared.pool_of(S3dlioStorageWriter("file:///x", **SMALL).config).arena
    assert arena.free == arena.slots


def writer(place: Path | str, **options: Any) -> S3dlioStorageWriter:
    return S3dlioStorageWriter(place, **{**SMALL, **options})


def reader(place: Path | str, **options: Any) -> S3dlioStorageReader:
    return S3dlioStorageReader(place, **{**SMALL, **options})


def save(state: dict[str, Any], place: Path | str, planner: Any = None, **options: Any) -> Any:
    return dcp.save(state, storage_writer=writer(place, **options), planner=planner, no_dist=True)


def load(state: dict[str, Any], place: Path | str, planner: Any = None, **options: Any) -> dict[str, Any]:
    dcp.load(state, storage_reader=reader(place, **options), planner=planner, no_dist=True)
    return state


def cause(caught: pytest.ExceptionInfo[BaseException]) -> BaseException:
    """What went wrong on rank 0."""
    assert isinstance(caught.value, CheckpointException)
    return caught.value.failures[0][0]


# round trips


@pytest.mark.parametrize("scheme", ["file", "direct"])
@pytest.mark.parametrize("compression", [None, "zstd", "zstd-grouped", "auto"])
def test_every_kind_of_leaf_comes_back(tmp_path: Path, scheme: str, compression: str | None) -> None:
    uri = f"{scheme}://{tmp_path}/step-5"
    save(odd(), uri, compression=compression)
    same(load(hollow(odd()), uri), odd())


@pytest.mark.parametrize("compression", [None, "zstd-grouped"])
def test_async_save_has_copied_when_it_returns(tmp_path: Path, compression: str | None, arena_is_free: None) -> None:
    state = odd()
    future = dcp.async_save(state, storage_writer=writer(tmp_path / "7", compression=compression), no_dist=True)
    for tensor in state["model"].values():
        if tensor.numel() and not tensor.is_conj():
            tensor.detach().view(-1 if tensor.is_contiguous() else tensor.shape).zero_()
    state["list"].append("changed")
    state["array"][:] = 0
    future.result()
    same(load(hollow(odd()), tmp_path / "7"), odd())


def test_the_stager_may_be_named_and_closed(tmp_path: Path, arena_is_free: None) -> None:
    one = writer(tmp_path / "7")
    dcp.async_save(odd(), storage_writer=one, async_stager=one, no_dist=True).result()
    one.close()
    same(load(hollow(odd()), tmp_path / "7"), odd())


def test_several_saves_of_one_writer_may_be_in_flight(tmp_path: Path, arena_is_free: None) -> None:
    one = writer(tmp_path)
    futures = [
        dcp.async_save(
            {"x": torch.full((MIB // 4,), float(step))}, checkpoint_id=f"step-{step}", storage_writer=one, no_dist=True
        )
        for step in range(4)
    ]
    for future in futures:
        future.result()
    for step in range(4):
        found = load({"x": torch.zeros(MIB // 4)}, tmp_path / f"step-{step}")["x"]
        assert bool((found == step).all())


def test_a_state_larger_than_the_arena(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {"x": torch.arange(15 * MIB, dtype=torch.int32)}
    save(state, tmp_path / "1")
    future = dcp.async_save(state, storage_writer=writer(tmp_path / "2"), no_dist=True)
    state["x"].zero_()
    future.result()
    assert "staged in host memory" in caplog.text
    for step in "12":
        found = load({"x": torch.zeros(15 * MIB, dtype=torch.int32)}, tmp_path / step)["x"]
        assert torch.equal(found, torch.arange(15 * MIB, dtype=torch.int32))


def test_an_empty_state(tmp_path: Path) -> None:
    save({}, tmp_path / "1")
    assert load({}, tmp_path / "1") == {}


def test_the_whole_state_without_a_target(tmp_path: Path) -> None:
    save(odd(), tmp_path / "1")
    state: dict[str, Any] = {}
    empty: Any = _EmptyStateDictLoadPlanner
    _load_state_dict(state, reader(tmp_path / "1"), planner=empty(), no_dist=True)
    assert bits(state["model"]["weight"]) == bits(odd()["model"]["weight"])
    assert state["pair"] == odd()["pair"]


def test_a_part_of_the_state(tmp_path: Path) -> None:
    save(odd(), tmp_path / "1")
    state = load({"model": {"half": torch.zeros(33, 5).bfloat16()}, "step": 0}, tmp_path / "1")
    assert bits(state["model"]["half"]) == bits(odd()["model"]["half"])
    assert state["step"] == 7
    with pytest.raises(CheckpointException, match="Missing key"):
        load({"model": {"other": torch.zeros(3)}}, tmp_path / "1")
    extra = {"model": {"other": torch.zeros(3)}, "step": 0}
    assert load(extra, tmp_path / "1", DefaultLoadPlanner(allow_partial_load=True))["step"] == 7


def test_targets_of_another_dtype_and_layout_are_converted(tmp_path: Path) -> None:
    saved = torch.randn(30, 20)
    save({"x": saved}, tmp_path / "1")
    assert torch.equal(load({"x": torch.zeros(30, 20).double()}, tmp_path / "1")["x"], saved.double())
    strided = torch.zeros(20, 30).t()
    assert torch.equal(load({"x": strided}, tmp_path / "1")["x"], saved)
    assert strided.stride() == (1, 30)


def test_only_the_chunks_of_what_is_asked_are_read(tmp_path: Path) -> None:
    """Damage elsewhere is not seen, since it is not read."""
    save({"a": torch.zeros(3 * MIB), "b": torch.ones(3 * MIB, dtype=torch.uint8)}, tmp_path / "1")
    damage(tmp_path / "1", "rank-0.bin", at=2 * MIB)
    found = load({"b": torch.zeros(3 * MIB, dtype=torch.uint8)}, tmp_path / "1")["b"]
    assert bool(found.all())
    with pytest.raises(CheckpointException) as caught:
        load({"a": torch.zeros(3 * MIB)}, tmp_path / "1")
    assert isinstance(cause(caught), CorruptError)


def test_writer_and_reader_travel(tmp_path: Path) -> None:
    one = pickle.loads(pickle.dumps(writer(tmp_path / "1", pickle=True)))
    dcp.save(odd(), storage_writer=one, no_dist=True)
    one = pickle.loads(pickle.dumps(one))  # in use or not
    dcp.save(odd(), storage_writer=one, no_dist=True)
    again = pickle.loads(pickle.dumps(reader(tmp_path / "1")))
    state = hollow(odd())
    dcp.load(state, storage_reader=again, no_dist=True)
    same(state, odd())


# the store


def test_a_checkpoint_is_one_of_the_store(tmp_path: Path) -> None:
    save(odd(), tmp_path / "step-12", user_meta={"loss": 1.5})
    with CheckpointStore(f"file://{tmp_path}/step-12", **SMALL) as store:
        (info,) = store.list()
        assert (info.step, info.framework, info.world_size) == (12, "torch.distributed.checkpoint", 2)
        assert info.user_meta["user"] == {"loss": 1.5}
        assert store.verify().shards == 2
        state = store.load(rank=0)
        assert bits(state["model.weight"]) == bits(odd()["model"]["weight"])
        assert state["pair"] == odd()["pair"]
        assert json.loads(bytes(store.load(rank=1)))["format_version"] == 1
        assert store.delete(12)
    assert not list(tmp_path.rglob("rank-*"))


def test_nothing_stored_is_a_pickle(tmp_path: Path) -> None:
    save(odd(), tmp_path / "1")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"PK\x03\x04" not in data, f"{path} holds what torch.save writes"
            assert b"ctorch\n" not in data, f"{path} holds a pickle"


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    tied = torch.randn(MIB)
    save({"a": tied, "b": tied}, tmp_path / "1")
    (shard,) = tmp_path.rglob("rank-0.bin")
    assert shard.stat().st_size < 5 * MIB
    same(load({"a": torch.zeros(MIB), "b": torch.zeros(MIB)}, tmp_path / "1"), {"a": tied, "b": tied})


def test_a_place_that_holds_a_checkpoint(tmp_path: Path) -> None:
    save({"x": 1}, tmp_path / "5")
    with pytest.raises(CheckpointException, match="Checkpoint already exists") as caught:
        save({"x": 2}, tmp_path / "5", overwrite=False)
    assert isinstance(cause(caught), PreconditionError)
    assert load({"x": 0}, tmp_path / "5")["x"] == 1
    save({"x": 3}, tmp_path / "5")
    assert load({"x": 0}, tmp_path / "5")["x"] == 3, "the newest"
    with CheckpointStore(f"file://{tmp_path}/5", **SMALL) as store:
        ids = [info.id for info in store.list()]
    assert len(ids) == 2, "the older one stays"
    assert load({"x": 0}, tmp_path / "5", id=ids[0])["x"] == 1
    save({"x": 4}, tmp_path / "5", keep_last=1)
    with CheckpointStore(f"file://{tmp_path}/5", **SMALL) as store:
        assert len(store.list()) == 1


def test_one_store_for_all_steps(tmp_path: Path) -> None:
    for step in (3, 4):
        save({"x": step}, tmp_path, step=step)
    assert load({"x": 0}, tmp_path)["x"] == 4
    assert load({"x": 0}, tmp_path, step=3)["x"] == 3
    with pytest.raises(CheckpointException, match="no committed checkpoint of step 9"):
        load({"x": 0}, tmp_path, step=9)


def test_ids_name_places(tmp_path: Path) -> None:
    one, two = writer(tmp_path / "a"), reader(tmp_path / "a")
    for id_ in ("step-1", str(tmp_path / "elsewhere"), f"direct://{tmp_path}/direct", tmp_path / "path"):
        dcp.save({"x": str(id_)}, checkpoint_id=id_, storage_writer=one, no_dist=True)
        state = {"x": ""}
        dcp.load(state, checkpoint_id=id_, storage_reader=two, no_dist=True)
        assert state["x"] == str(id_)
    folders = {path.parent.parent for path in tmp_path.rglob("manifests/ckpt-*")}
    assert folders == {tmp_path / name for name in ("a/step-1", "elsewhere", "direct", "path")}


@pytest.mark.parametrize(
    ("strategy", "folder"),
    [
        ({"prefix_strategy": BinaryPrefixStrategy(epoch_num=2)}, "by/0000000000/epoch_2"),
        ({"prefix_strategy": RoundRobinPrefixStrategy(["left", "right"])}, "by/left"),
        ({"strategy": "round_robin"}, "rr/00"),
        ({"strategy": "binary"}, "bin/0000"),
    ],
)
def test_shards_are_spread(tmp_path: Path, strategy: dict[str, Any], folder: str) -> None:
    save(odd(), tmp_path / "1", **strategy)
    (shard,) = tmp_path.rglob("rank-0.bin")
    assert str(shard.relative_to(tmp_path / "1" / "shards")).startswith(f"{folder}/ckpt-1-")
    same(load(hollow(odd()), tmp_path / "1"), odd())
    with CheckpointStore(f"file://{tmp_path}/1", **SMALL) as store:
        store.verify()
        assert store.delete(1)
    assert not list(tmp_path.rglob("rank-*"))


def test_a_prefix_that_makes_no_key_fails_the_save(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException, match="is no prefix"):
        save({"x": 1}, tmp_path / "1", prefix_strategy=RoundRobinPrefixStrategy(["../up"]))
    assert not list(tmp_path.rglob("rank-*"))


def test_ranks_without_collectives_save_for_themselves(tmp_path: Path) -> None:
    one = writer(tmp_path / "1")
    for value in (1, 2):
        dcp.save({"x": value}, storage_writer=one, no_dist=True, use_collectives=False)
    state = {"x": 0}
    dcp.load(state, storage_reader=reader(tmp_path / "1"), no_dist=True)
    assert state["x"] == 2
    assert {path.name for path in (tmp_path / "1").iterdir()} == {"ranks"}


# plans


def test_a_cached_plan_does_not_touch_the_earlier_checkpoint(tmp_path: Path) -> None:
    """The planner hands out the plan of the first save, with the key that came with it."""
    one = writer(tmp_path)
    try:
        for step in range(3):
            dcp.save(
                {"x": torch.full((10,), float(step)), "n": step},
                checkpoint_id=f"step-{step}",
                storage_writer=one,
                planner=DefaultSavePlanner(enable_plan_caching=True),
                no_dist=True,
            )
        for step in range(3):
            state = load({"x": torch.zeros(10), "n": -1}, tmp_path / f"step-{step}")
            assert state["n"] == step
            assert bool((state["x"] == step).all())
    finally:
        for name in ("_cached_save_plan", "_cached_final_save_plan", "_cached_all_plans", "_cached_global_plan",
                     "_cached_metadata"):  # fmt: skip
            getattr(DefaultSavePlanner, name).clear()


class Halving(DefaultSavePlanner):
    """Saves float32 as bfloat16, as torch's documentation shows it."""

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        for item in plan.items:
            if item.tensor_data is not None and item.tensor_data.properties.dtype == torch.float32:
                item.tensor_data.properties.dtype = torch.bfloat16
        return plan

    def resolve_data(self, write_item: Any) -> Any:
        found = super().resolve_data(write_item)
        return found.bfloat16() if isinstance(found, torch.Tensor) and found.dtype == torch.float32 else found


def test_a_planner_that_converts(tmp_path: Path) -> None:
    state = {"x": torch.randn(100), "n": torch.arange(3)}
    save(state, tmp_path / "1", Halving())
    found = load({"x": torch.zeros(100), "n": torch.zeros(3, dtype=torch.int64)}, tmp_path / "1")
    assert torch.equal(found["x"], state["x"].bfloat16().float())


def test_a_planner_that_converts_needs_another_stager(tmp_path: Path, arena_is_free: None) -> None:
    state = {"x": torch.randn(100)}
    one = writer(tmp_path / "1")
    future = dcp.async_save(state, storage_writer=one, planner=Halving(), no_dist=True)
    with pytest.raises(CheckpointException, match="BlockingAsyncStager"):
        future.result()
    del future
    one.close()
    assert not list(tmp_path.rglob("rank-*"))
    dcp.async_save(
        state, storage_writer=one, planner=Halving(), async_stager=BlockingAsyncStager(), no_dist=True
    ).result()
    assert torch.equal(load({"x": torch.zeros(100)}, tmp_path / "1")["x"], state["x"].bfloat16().float())


class Lying(DefaultSavePlanner):
    def resolve_data(self, write_item: Any) -> Any:
        return super().resolve_data(write_item)[:1]  # type: ignore[index]


class Pickling(DefaultSavePlanner):
    def transform_object(self, write_item: Any, object: Any) -> Any:
        return super().transform_object(write_item, object)


def test_planners_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException, match=r"x: the planner gives .* its plan says"):
        save({"x": torch.ones(3)}, tmp_path / "1", Lying())
    with pytest.raises(CheckpointException, match="n: the planner Pickling makes bytes of objects itself"):
        save({"n": 1}, tmp_path / "1", Pickling())
    save({"n": 1}, tmp_path / "1", Pickling(), pickle=True)
    assert load({"n": 0}, tmp_path / "1", pickle=True)["n"] == 1


# pickle


class Custom:
    """An object without a typed form."""

    def __init__(self, value: int) -> None:
        self.value = value


@pytest.mark.parametrize("background", [False, True])
def test_objects_need_pickle_by_name(tmp_path: Path, background: bool, arena_is_free: None) -> None:
    state = {"x": torch.ones(3), "extra": {"thing": Custom(5)}, "n": 1}

    def run(**options: Any) -> None:
        one = writer(tmp_path / "1", **options)
        if background:
            dcp.async_save(state, storage_writer=one, no_dist=True).result()
        else:
            dcp.save(state, storage_writer=one, no_dist=True)

    with pytest.raises((CheckpointException, UnsupportedError), match=r"extra\.thing.*pickle=True"):
        run()
    run(pickle=True)
    target = {"x": torch.zeros(3), "extra": {"thing": None}, "n": 0}
    with pytest.raises(CheckpointException, match=r"extra\.thing was saved as a pickle.*pickle=True"):
        load(target, tmp_path / "1")
    load(target, tmp_path / "1", pickle=True)
    assert target["extra"]["thing"].value == 5  # type: ignore[index]
    assert target["n"] == 1
    assert load({"x": torch.zeros(3)}, tmp_path / "1")["x"].all(), "the rest needs no pickle"


# faults


def damage(folder: Path, name: str, at: int) -> None:
    """Flip a bit of a stored object."""
    (path,) = folder.rglob(name)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    ("name", "at"), [("rank-0.bin", MIB), ("rank-0.idx", 50), ("rank-1.bin", 60), ("rank-1.idx", 9)]
)
def test_a_damaged_byte_is_found(tmp_path: Path, name: str, at: int) -> None:
    save(odd(), tmp_path / "1")
    damage(tmp_path / "1", name, at)
    state = hollow(odd())
    with pytest.raises(CheckpointException) as caught:
        load(state, tmp_path / "1")
    error = cause(caught)
    assert isinstance(error, CorruptError) or "is damaged" in str(error) or "checksum" in str(error), error


def test_a_store_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException, match="holds no committed checkpoint"):
        load({"x": 0}, tmp_path / "nothing")
    with CheckpointStore(f"file://{tmp_path}/plain", **SMALL) as store:
        store.save(1, {"x": torch.ones(3)})
    with pytest.raises(CheckpointException, match="load it with CheckpointStore"):
        load({"x": 0}, tmp_path / "plain")


@pytest.mark.parametrize(
    ("saved", "target", "message"),
    [
        ({"x": torch.ones(3)}, {"x": torch.zeros(4)}, "Size mismatch"),
        ({"x": torch.ones(3)}, {"x": 5}, "Invalid checkpoint metadata|Unsupported Type"),
    ],
)
def test_targets_that_do_not_fit(tmp_path: Path, saved: Any, target: Any, message: str) -> None:
    save(saved, tmp_path / "1")
    with pytest.raises(CheckpointException, match=message):
        load(target, tmp_path / "1")


class Tagged(torch.Tensor):
    """A tensor of a kind that only its maker knows."""


BAD: dict[str, Any] = {
    "subclass": lambda: torch.ones(3).as_subclass(Tagged),
    "meta": lambda: torch.empty(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("background", [False, True])
def test_tensors_that_cannot_be_stored_are_named(
    tmp_path: Path, bad: str, background: bool, arena_is_free: None
) -> None:
    state = {"ok": torch.ones(3), "deep": {"bad": BAD[bad]()}}

    def run() -> None:
        if background:
            dcp.async_save(state, storage_writer=writer(tmp_path / "1"), no_dist=True).result()
        else:
            save(state, tmp_path / "1")

    with pytest.raises((CheckpointException, UnsupportedError), match=r"deep\.bad"):
        run()
    assert not list(tmp_path.rglob("rank-*"))


def test_a_failed_store_leaves_no_checkpoint(tmp_path: Path, arena_is_free: None) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "shards").write_bytes(b"in the way")
    with pytest.raises(CheckpointException):
        save(odd(), tmp_path / "1")
    future = dcp.async_save(odd(), storage_writer=writer(tmp_path / "1"), no_dist=True)
    with pytest.raises(CheckpointException):
        future.result()
    with pytest.raises(CheckpointException, match="holds no committed checkpoint"):
        load({"x": 0}, tmp_path / "1")


def test_a_save_that_fails_at_the_commit_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise S3dlioError("the coordinator fails")

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "commit_checkpoint", broken)
        with pytest.raises(CheckpointException, match="the coordinator fails"):
            save(odd(), tmp_path / "1")
    with pytest.raises(CheckpointException):
        load({"x": 0}, tmp_path / "1")
    save(odd(), tmp_path / "1", overwrite=False)
    same(load(hollow(odd()), tmp_path / "1"), odd())


def test_states_that_were_never_saved_give_their_memory_back(tmp_path: Path, arena_is_free: None) -> None:
    one = writer(tmp_path / "1")
    staged = one.stage({"x": torch.ones(MIB)})
    one.close()
    with pytest.raises(CheckpointException, match="stage the state again"):
        dcp.save(staged, storage_writer=one, no_dist=True)
    again = one.stage({"x": torch.ones(MIB)})
    del again, staged  # collected
    same(load_after(one, tmp_path / "1"), {"x": torch.full((MIB,), 2.0)})


def load_after(one: S3dlioStorageWriter, place: Path) -> dict[str, Any]:
    dcp.async_save({"x": torch.full((MIB,), 2.0)}, storage_writer=one, no_dist=True).result()
    return load({"x": torch.zeros(MIB)}, place)


def test_a_staged_state_does_not_travel(tmp_path: Path) -> None:
    one = writer(tmp_path / "1")
    staged = one.stage({"x": torch.ones(3), "n": 1})
    with pytest.raises(UnsupportedError, match="staging='shared'"):
        pickle.dumps(staged)
    one.close()


def test_staging_for_another_process_is_in_shared_memory(tmp_path: Path) -> None:
    one = writer(tmp_path / "1", staging="shared")
    state = odd()
    staged = one.stage(state)
    assert staged["model"]["weight"].is_shared()
    state["model"]["weight"].zero_()
    dcp.save(staged, storage_writer=one, no_dist=True)
    same(load(hollow(odd()), tmp_path / "1"), odd())


def test_readers_say_what_is_missing(tmp_path: Path) -> None:
    one = reader(tmp_path / "1")
    with pytest.raises(CheckpointNotFoundError):
        one.read_metadata()
    with pytest.raises(ConfigError):
        reader("nonsense")
