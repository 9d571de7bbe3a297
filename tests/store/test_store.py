"""What ``CheckpointStore`` promises about saving: what goes in, where it lies, and that bad input touches nothing."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from s3dlio import (
    CheckpointConfig,
    CheckpointInfo,
    CheckpointStore,
    ConfigError,
    DeadlineError,
    MemoryLimitError,
    PoolClosedError,
    StorageError,
    Strategy,
    UnsupportedError,
)
from s3dlio.commit import commit
from s3dlio.saving import Save
from s3dlio.state_saver import StateSaver

from .live import MIB, SMALL, assert_same, contents, open_store, random_bytes, smooth_floats, workers_stopped

STATE: dict[str, Any] = {
    "model": {"w": smooth_floats(600_000).reshape(600, 1000), "b": np.zeros(0, np.float16)},
    "steps": [1, 2, (3, None)],
    "name": "räksmörgås",
    "raw": b"\0\1",
    "lr": 1e-3,
}


@pytest.fixture(autouse=True)
def pool(kept_pool: CheckpointStore) -> CheckpointStore:
    """Every test finds the workers running."""
    return kept_pool


class TestSaving:
    @pytest.mark.parametrize("scheme", ["file", "direct"])
    def test_a_state_comes_back_as_it_was(self, folder: Path, scheme: str) -> None:
        with open_store(folder, scheme) as store:
            info = store.save(7, STATE, epoch=2)
            assert (info.step, info.epoch, info.framework, info.status) == (7, 2, "numpy", "complete")
            assert (info.world_size, info.total_size) == (1, info.raw_size)
            assert re.fullmatch(r"ckpt-7-\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{8}", info.id)
            assert_same(store.load(), STATE)

    def test_what_a_save_stores_is_a_manifest_two_pointers_a_shard_and_its_index(
        self, store: CheckpointStore, folder: Path
    ) -> None:
        info = store.save(7, STATE)
        assert set(contents(folder)) == {
            "latest.json",
            "manifests/latest.json",
            f"manifests/{info.id}.json",
            f"shards/{info.id}/rank-0.bin",
            f"shards/{info.id}/rank-0.idx",
        }

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_a_payload_is_stored_as_it_is(self, store: CheckpointStore, folder: Path, kind: Any) -> None:
        data = random_bytes(2 * MIB + 5)
        info = store.save(1, kind(data))
        assert contents(folder)[f"shards/{info.id}/rank-0.bin"] == data
        assert info.framework == "bytes"
        assert store.load() == data

    def test_an_empty_payload_and_an_empty_state_are_saved(self, store: CheckpointStore) -> None:
        assert store.save(1, b"").raw_size == 0
        assert store.load() == b""
        states: list[Any] = [{}, [], None, 5, "text"]
        for step, state in enumerate(states, 2):
            store.save(step, state)
            assert_same(store.load(), state)
            assert store.verify(step).ok

    def test_torch_states_are_of_pytorch(self, store: CheckpointStore) -> None:
        state: dict[str, Any] = {"w": torch.arange(10, dtype=torch.bfloat16), "opt": {0: torch.ones(3)}}
        assert store.save(1, state).framework == "pytorch"
        loaded = store.load()
        assert torch.equal(loaded["w"], state["w"])
        assert list(loaded["opt"]) == [0]

    def test_a_state_larger_than_the_arena_streams_through_it(self, folder: Path) -> None:
        with open_store(folder, memory=12 * MIB, workers=1) as store:
            state = {"w": np.arange(10 << 20, dtype=np.uint32)}
            store.save(1, state)
            handle = store.save_async(2, state)
            assert handle.progress().staged == handle.progress().total
            handle.result(60)
            for step in (1, 2):
                assert_same(store.load(step), state)

    def test_several_saves_are_in_flight_at_once(self, warm: CheckpointStore) -> None:
        with workers_stopped(warm):
            handles = [warm.save_async(step, {"w": np.full(300_000, step, np.int32)}) for step in range(1, 9)]
            assert repr(warm) == f"<CheckpointStore {warm.uri}: 8 saves in flight>"
            assert not any(handle.done() for handle in handles)
        assert [handle.result(60).step for handle in handles] == list(range(1, 9))
        for step in range(1, 9):
            assert (warm.load(step)["w"] == step).all()
        assert repr(warm) == f"<CheckpointStore {warm.uri}: 0 saves in flight>"

    def test_several_deferred_saves_are_in_flight_at_once(self, warm: CheckpointStore) -> None:
        handles = [
            warm.save_async(step, {"w": np.full(300_000, step, np.int32)}, defer_staging=True) for step in range(1, 9)
        ]
        for handle in handles:
            handle.result(60)
        assert {info.step for info in warm.list()} == set(range(9))
        for step in range(1, 9):
            assert (warm.load(step)["w"] == step).all()

    def test_what_the_user_says_is_recorded(self, store: CheckpointStore, folder: Path) -> None:
        meta = {"loss": 1.25, "tags": ["a", None], "n": 2**63}
        info = store.save(np.int64(5), STATE, epoch=3, framework="mine", user_meta=meta, id="run-1.a")
        assert (info.step, info.epoch, info.framework, info.user_meta, info.label) == (5, 3, "mine", meta, "run-1.a")
        assert store.info(5) == info
        manifest = json.loads(contents(folder)[info.manifest_key])
        assert (manifest["global_step"], manifest["epoch"], manifest["user_meta"]) == (5, 3, meta)

    def test_a_label_twice_is_two_checkpoints(self, store: CheckpointStore) -> None:
        assert store.save(5, b"one", id="same").id != store.save(5, b"two", id="same").id
        assert store.load(5) == b"two"
        assert len(store.list()) == 2

    def test_coordinator_none_saves_alone(self, store: CheckpointStore) -> None:
        assert store.save(1, b"x", coordinator=None).world_size == 1

    @pytest.mark.parametrize("strategy", ["flat", "Round_Robin", "BINARY", Strategy.BINARY, None])
    def test_strategies_place_the_shard(self, folder: Path, strategy: Any) -> None:
        with open_store(folder, strategy=strategy) as store:
            info = store.save(1, b"x")
            prefix = Strategy.parse(strategy).prefix(0)
            assert (folder / f"shards/{prefix}{info.id}/rank-0.bin").read_bytes() == b"x"
            assert store.load() == b"x"

    def test_other_code_opens_a_state_with_the_safetensors_package(self, store: CheckpointStore, folder: Path) -> None:
        safetensors = pytest.importorskip("safetensors.numpy")
        info = store.save(1, STATE)
        tensors = safetensors.load_file(folder / f"shards/{info.id}/rank-0.bin")
        assert set(tensors) == {"model.w", "model.b"}
        assert_same(tensors["model.w"], STATE["model"]["w"])
        assert safetensors.load(bytes(store.read_shard())).keys() == tensors.keys()

    def test_a_clock_that_is_behind_still_makes_the_newest(
        self, folder: Path, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.save(100, b"before")
        with open_store(folder) as other:
            monkeypatch.setattr("s3dlio.ids.time.time_ns", lambda: 1_000_000_000)
            other.save(50, b"rolled back")
            assert other.load() == b"rolled back"
        assert [info.step for info in store.list()] == [100, 50]


class TestBadInput:
    """Each is refused by name before anything is written."""

    @pytest.fixture(autouse=True)
    def unchanged(self, warm: CheckpointStore, folder: Path) -> Any:
        before = contents(folder)
        yield
        assert contents(folder) == before
        assert warm._saver.pending() == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"step": -1}, "step must be 0 or more and fit 64 bits, not -1"),
            ({"step": 2**64}, f"step must be 0 or more and fit 64 bits, not {2**64}"),
            ({"step": 1.0}, "step must be an integer, not 1.0"),
            ({"step": True}, "step must be an integer, not True"),
            ({"step": "1"}, "step must be an integer, not '1'"),
            ({"epoch": -1}, "epoch must be an integer of 0 or more, not -1"),
            ({"epoch": None}, "epoch must be an integer of 0 or more, not None"),
            ({"framework": "a\nb"}, "framework must be at most 256 printable characters, not 'a\\nb'"),
            ({"framework": 5}, "framework must be at most 256 printable characters, not 5"),
            ({"user_meta": {"x": {1}}}, "user_meta['x'] is set , which JSON does not have"),
            ({"user_meta": float("nan")}, "user_meta is nan, which JSON does not have"),
            ({"user_meta": {1: 2}}, "user_meta has the key 1: keys must be strings"),
            ({"user_meta": "x" * (1 << 20)}, "user_meta is 1048578 bytes as JSON, more than 1048576"),
            ({"id": ""}, "id='' is no id"),
            ({"id": "a/b"}, "id='a/b' is no id"),
            ({"id": 5}, "id=5 is no id"),
            ({"coordinator": "mpi"}, "coordinator must be 'auto', None or a StoreCoordinator, not 'mpi'"),
        ],
    )
    @pytest.mark.parametrize("method", ["save", "save_async"])
    def test_arguments(self, warm: CheckpointStore, method: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            getattr(warm, method)(**{"step": 1, "state": b"x", **options})
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            (object(), "object objects need pickle"),
            ({"a": [1, {2, 3}]}, "['a'][1]"),
            ({"f": print}, "['f']"),
            ({"o": np.array([None])}, "['o']"),
            ({"m": {"t": torch.ones(2, device="meta")}}, "['m']['t']"),
        ],
    )
    def test_states_that_need_pickle(self, warm: CheckpointStore, state: Any, message: str) -> None:
        for deferred in (False, True):
            with pytest.raises(UnsupportedError) as caught:
                warm.save_async(1, state, defer_staging=deferred)
            assert message in str(caught.value)

    def test_names_and_into_exclude_each_other(self, warm: CheckpointStore) -> None:
        with pytest.raises(ConfigError, match="load takes into= or names=, not both"):
            warm.load(into={}, names="*")

    def test_a_state_whose_source_fails_is_no_checkpoint(
        self, warm: CheckpointStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise OSError("the memory is gone")

        monkeypatch.setattr("s3dlio.content._Image.fill", broken, raising=False)
        monkeypatch.setattr("s3dlio.tensors.ShardImage.copy_to", broken)
        with pytest.raises(OSError, match="the memory is gone"):
            warm.save(1, STATE)
        handle = warm.save_async(1, STATE, defer_staging=True)
        with pytest.raises(OSError, match="the memory is gone"):
            handle.wait_staged(60)
        assert isinstance(handle.exception(60), OSError)
        pool = warm._use_pool()
        assert pool.arena.free == pool.arena.slots


class TestOpening:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"memory": 0}, "memory must be a positive number, not 0"),
            ({"memory": "1G"}, "memory must be a positive number, not '1G'"),
            ({"memory": True}, "memory must be a positive number, not True"),
            ({"workers": 0}, "workers must be a positive number, not 0"),
            ({"workers": 1.5}, "workers must be a positive number, not 1.5"),
            ({"chunk_size": 1000}, "chunk_size must be a multiple of 1 MiB, not 1000"),
            ({"chunk_size": 0}, "chunk_size must be a multiple of 1 MiB, not 0"),
            ({"chunk_size": "1M"}, "chunk_size must be a multiple of 1 MiB, not '1M'"),
            ({"compression": "lzma"}, "compression 'lzma' is unknown"),
            ({"strategy": "x"}, "unknown strategy 'x'"),
            ({"keep_last": 0}, "keep_last must be a number of 1 or more, not 0"),
        ],
    )
    def test_options_are_checked_at_once(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            CheckpointStore(f"file://{tmp_path}/x", **options)
        assert str(caught.value).startswith(message)
        assert not list(tmp_path.iterdir())

    def test_opening_touches_nothing(self, folder: Path) -> None:
        with open_store(folder) as store:
            assert store.list() == []
            assert store.latest() is None
        assert not folder.exists()

    def test_a_config_is_taken_whole(self, folder: Path) -> None:
        config = CheckpointConfig(**SMALL, compression="zstd", strategy=Strategy.BINARY)
        for store in (
            CheckpointStore(f"file://{folder}", config=config),
            CheckpointStore.open_with_config(f"file://{folder}", config),
        ):
            with store:
                assert store.config is config

    @pytest.mark.parametrize(
        "options", [{"keep_last": 2}, {"strategy": "binary"}, {"compression": "none"}, {"compression_level": 5}]
    )
    def test_a_config_and_options_beside_it_are_refused(self, folder: Path, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="either config= or"):
            CheckpointStore(f"file://{folder}", config=CheckpointConfig(), **options)

    def test_open_takes_the_defaults(self, folder: Path) -> None:
        with CheckpointStore.open(f"file://{folder}") as store:
            assert store.config == CheckpointConfig()
            assert repr(store) == f"<CheckpointStore file://{folder}: 0 saves in flight>"

    def test_less_memory_than_a_chunk_is_an_error_that_names_both(self, folder: Path) -> None:
        with (
            open_store(folder, memory=MIB - 1) as store,
            pytest.raises(MemoryLimitError, match=rf"{MIB - 1} bytes\) cannot hold one chunk of {MIB} bytes: raise"),
        ):
            store.save(1, b"x")
        assert not folder.exists()

    def test_a_file_in_the_place_of_the_folder_is_told(self, folder: Path) -> None:
        folder.write_bytes(b"not a folder")
        with open_store(folder) as store:
            with pytest.raises(StorageError, match=re.escape(str(folder))):
                store.save(1, b"x")
            handle = None
            try:
                handle = store.save_async(1, b"x")
            except StorageError:
                pass
            else:
                assert isinstance(handle.exception(60), StorageError)
        assert folder.read_bytes() == b"not a folder"


class TestLife:
    def test_a_closed_store_refuses_work_and_closes_again(self, folder: Path) -> None:
        store = open_store(folder)
        store.save(1, b"x")
        store.close()
        store.close()
        assert repr(store) == f"<CheckpointStore {store.uri}: closed>"
        calls: list[Any] = [
            lambda: store.save(2, b"y"),
            lambda: store.save_async(2, b"y"),
            store.load,
            store.list,
            store.latest,
            lambda: store.info(1),
            store.verify,
            lambda: store.delete(1),
            lambda: store.prune(1),
            store.cleanup,
            lambda: store.warmup(1),
            store.read_shard,
        ]
        for call in calls:
            with pytest.raises(PoolClosedError, match=f"the store {re.escape(store.uri)} is closed"):
                call()

    def test_close_waits_for_saves_in_flight(self, folder: Path) -> None:
        store = open_store(folder)
        store.save(0, b"")
        with workers_stopped(store):
            handles = [store.save_async(step, STATE, defer_staging=step == 3) for step in (1, 2, 3)]
        store.close()
        assert [handle.result(0).step for handle in handles] == [1, 2, 3]

    def test_close_waits_for_a_save_that_is_not_yet_staging(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_store(folder)
        store.save(0, b"")
        begun, go = threading.Event(), threading.Event()
        stage = StateSaver.store

        def held(*args: Any, **options: Any) -> None:
            begun.set()
            go.wait()
            stage(*args, **options)

        monkeypatch.setattr(StateSaver, "store", held)
        handle = store.save_async(1, STATE, defer_staging=True)
        assert begun.wait(60)
        closing = threading.Thread(target=store.close)
        closing.start()
        while not store._closing:
            closing.join(0.001)
        go.set()
        closing.join()
        assert handle.result(0).step == 1

    def test_a_ctrl_c_while_closing_leaves_the_saves_to_the_next_close(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_store(folder)
        store.save(0, b"")
        with workers_stopped(store):
            handle = store.save_async(1, STATE)
            with monkeypatch.context() as patch:
                patch.setattr(Save, "wait", Mock(side_effect=KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    store.close()
            with pytest.raises(PoolClosedError, match="is closed"):
                store.save(2, b"")
        store.close()
        assert handle.result(0).step == 1

    def test_close_gives_up_after_its_timeout(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = open_store(folder, workers=1)
        store.save(0, b"")
        cancelled = threading.Event()
        cancel = Save.cancel

        def tell(save: Save) -> bool:
            done = cancel(save)
            cancelled.set()
            return done

        monkeypatch.setattr(Save, "cancel", tell)
        with workers_stopped(store):
            handle = store.save_async(1, STATE)
            closing = _Caught(lambda: store.close(timeout=0.01))
            assert cancelled.wait(60)
        error = closing.join()
        assert isinstance(error, DeadlineError)
        assert str(error).startswith(f"{store.uri}: given up after 0.01 s, not committed: ckpt-1-")
        assert handle.done()
        assert handle.exception() is not None
        with open_store(folder) as again:
            assert [info.step for info in again.list()] == [0]

    def test_the_bodys_error_goes_before_that_of_a_save(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise StorageError("on fire")

        monkeypatch.setattr("s3dlio.state_saver.commit", refuse)
        with pytest.raises(ZeroDivisionError):
            save_and_fail(folder)
        with pytest.raises(StorageError, match="on fire"), open_store(folder) as store:
            store.save_async(1, STATE)

    def test_an_error_in_the_body_still_waits_for_the_saves(self, folder: Path) -> None:
        with pytest.raises(ZeroDivisionError):
            save_and_fail(folder)
        with open_store(folder) as store:
            assert_same(store.load(), STATE)

    def test_only_failures_that_nobody_asked_about_are_raised_at_close(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = open_store(folder)
        store.save(0, b"")

        def refuse(control: Any, records: Any, *, step: int, **options: Any) -> Any:
            if step:
                raise StorageError(f"no {step}")
            return commit(control, records, step=step, **options)

        monkeypatch.setattr("s3dlio.state_saver.commit", refuse)
        handles = [store.save_async(step, b"x") for step in (1, 2, 3)]
        assert handles[0].exception(60) is not None
        with pytest.raises(StorageError, match=r"no [23]"):
            store.close()
        for step in (1, 2, 3):
            assert re.search(rf"the save of ckpt-{step}-\S+ failed: StorageError: no {step}", caplog.text)

    def test_two_stores_share_a_pool_and_the_last_ends_it(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"memory": 8 * MIB, "workers": 1}
        one, two = open_store(tmp_path / "a", **options), open_store(tmp_path / "b", **options)
        one.save(1, b"one")
        two.save(1, b"two")
        pool = one._use_pool()
        assert two._use_pool() is pool
        one.close()
        assert not pool.closed
        assert two.load() == b"two"
        two.close()
        assert pool.closed

    def test_stores_of_other_sizes_do_not(self, tmp_path: Path, store: CheckpointStore) -> None:
        with open_store(tmp_path / "b", memory=8 * MIB, workers=1) as other:
            assert other._use_pool() is not store._use_pool()

    def test_warmup_makes_the_arena_warm(self, tmp_path: Path) -> None:
        with open_store(tmp_path, memory=8 * MIB, workers=1) as store:
            assert store.warmup(3 * MIB) == 3 * MIB
            assert store.warmup() == 8 * MIB

    def test_threads_save_and_load_at_once(self, store: CheckpointStore) -> None:
        errors: list[BaseException] = []
        start = threading.Barrier(6)

        def work(number: int) -> None:
            try:
                start.wait()
                for step in (number, number + 10):
                    state = {"w": np.full(200_000, step, np.int32), "step": step}
                    store.save(step, state)
                    assert_same(store.load(step), state)
                    assert store.verify(step).ok
                    assert any(info.step == step for info in store.list())
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        infos = store.list()
        assert sorted(info.step for info in infos) == sorted([*range(6), *range(10, 16)])
        assert len({info.id for info in infos}) == 12


def save_and_fail(folder: Path) -> None:
    with open_store(folder) as store:
        store.save_async(1, STATE)
        raise ZeroDivisionError


class _Caught:
    """A call in a thread; what it raised."""

    def __init__(self, call: Any) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Any) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001
            self._error = error

    def join(self) -> BaseException | None:
        self._thread.join()
        return self._error


def test_ranks_that_share_the_machine_share_its_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, ranks in [
        ("LOCAL_WORLD_SIZE", "4", 4),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "8", 8),
        ("MV2_COMM_WORLD_LOCAL_SIZE", "2", 2),
        ("LOCAL_WORLD_SIZE", "many", 1),
        ("LOCAL_WORLD_SIZE", "0", 1),
    ]:
        with monkeypatch.context() as patch:
            for each in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"):
                patch.delenv(each, raising=False)
            patch.setenv(name, value)
            with CheckpointStore(f"file://{folder}") as store:
                assert store._pool_config.ranks_on_host == ranks


def test_info_is_a_record(store: CheckpointStore) -> None:
    info = store.save(1, b"x" * 1000)
    assert isinstance(info, CheckpointInfo)
    assert (info.is_complete, info.is_single_rank) == (True, True)
    assert (info.size_mb, info.size_gb) == (1000 / 2**20, 1000 / 2**30)
    assert os.path.basename(info.manifest_key) == f"{info.id}.json"
