"""torch DCP in worlds of several ranks: sharded states, other numbers of ranks, and ranks that fail."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3dlio import CheckpointStore
from tests.frameworks.dcp_ranks import run
from tests.frameworks.dcp_states import SMALL
from tests.servers.azurite import Container
from tests.servers.s3_server import Bucket

pytestmark = pytest.mark.slow


def store(where: Path | str, **options: Any) -> CheckpointStore:
    return CheckpointStore(f"file://{where}" if isinstance(where, Path) else where, **{**SMALL, **options})


SAVE_BOTH_WAYS = """
    dcp.save(sharded(mesh), storage_writer=writer("/step-1"))
    state = sharded(mesh)
    future = dcp.async_save(state, storage_writer=writer("/step-2"))
    clobber(state)
    state["groups"][0]["lr"] = 5.0
    future.result()
    for step in (1, 2):
        state = sharded(mesh, empty=True)
        dcp.load(state, storage_reader=reader(f"/step-{step}"))
        check(state, mesh)
"""

LOAD_BOTH = """
    for step in (1, 2):
        state = {key: value for key, value in sharded(mesh, empty=True).items() if not key.startswith(("own", "seen"))}
        dcp.load(state, storage_reader=reader(f"/step-{step}"))
        check(state, mesh)
"""


@pytest.mark.parametrize("worlds", [(2, 3), (3, 2)])
def test_sharded_states_load_on_other_numbers_of_ranks(tmp_path: Path, worlds: tuple[int, int]) -> None:
    first, second = worlds
    run(tmp_path, first, SAVE_BOTH_WAYS, uri=f"file://{tmp_path}/run")
    run(tmp_path, second, LOAD_BOTH, uri=f"file://{tmp_path}/run")
    for step in (1, 2):
        place = tmp_path / "run" / f"step-{step}"
        with store(place) as here:
            assert here.verify().shards == first + 1
            assert [here.load(rank=rank)["model.rows"].shape[0] for rank in range(first)] == [
                -(-1001 // first) if rank < first - 1 else 1001 - (first - 1) * -(-1001 // first)
                for rank in range(first)
            ]
        assert len({path.parent for path in place.rglob("rank-*.bin")}) == 1, "all ranks under one id"
        # 1001 x 300 and 700 x 300 floats, two of 400,000, some small ones: replicas are there once
        sizes = sum(path.stat().st_size for path in place.rglob("rank-*.bin"))
        once = 4 * (1001 * 300 + 700 * 300 + 2 * 400_000 + 64 * 701 + 50 * 50)
        assert once < sizes < once + 200_000


def test_a_rank_reads_its_rows_alone(tmp_path: Path) -> None:
    """In whole chunks, for their checksums: counted in what it asks the workers for, beside what they hold."""
    body = """
        import s3dlio.reader as reading
        through_slots, read = reading.fetch_through_slots, []

        def counted(pool, items):
            read.append([task.raw for task, _ in items])
            through_slots(pool, items)

        reading.fetch_through_slots = counted
        whole = torch.arange(12 * MIB // 4, dtype=torch.float32).reshape(-1, 1024)
        if ARGS["save"]:
            dcp.save({"w": part(whole, mesh, Shard(0)), "other": torch.ones(4 * MIB)}, storage_writer=writer())
        else:
            state = {"w": part(torch.zeros_like(whole), mesh, Shard(0))}
            dcp.load(state, storage_reader=reader())
            assert torch.equal(state["w"].full_tensor(), whole)
            rows = state["w"].to_local().nbytes
            assert rows <= sum(map(sum, read)) <= rows + 4 * MIB, (rows, read)  # the first and last chunk of two shards
    """
    for world, save in ((2, True), (3, False)):
        run(tmp_path, world, body, uri=f"file://{tmp_path}/run", save=save)


def test_a_rank_with_nothing_to_store(tmp_path: Path) -> None:
    """What all ranks have is stored by one of them: the plans of the others are empty."""
    body = """
        state = {"same": torch.arange(5.0), "n": 3}
        dcp.save(state, storage_writer=writer("/1"))
        dcp.async_save(state, storage_writer=writer("/2")).result()
        for step in (1, 2):
            target = {"same": torch.zeros(5), "n": -1}
            dcp.load(target, storage_reader=reader(f"/{step}"))
            assert target["n"] == 3 and target["same"].tolist() == [0, 1, 2, 3, 4]
    """
    run(tmp_path, 3, body, uri=f"file://{tmp_path}/run")
    with store(tmp_path / "run" / "1") as here:
        assert sorted(len(here.load(rank=rank)) for rank in range(3))[0] == 0
        assert here.verify().shards == 4


def test_fsdp2_with_an_optimizer(tmp_path: Path) -> None:
    """Saved after a step on two ranks, loaded on three: the next losses are those of a run that went on."""
    train = """
        from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(13, 37), torch.nn.Tanh(), torch.nn.Linear(37, 5))
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

        def step(number):
            chance = torch.Generator().manual_seed(number)
            loss = model(torch.randn(6, 13, generator=chance)).square().mean()  # the same batch on every rank
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        def state():
            model_state, optimizer_state = get_state_dict(model, optimizer)
            return {"model": model_state, "optimizer": optimizer_state}
    """
    body = train + (
        """
        losses = [step(0)]
        # Training talks on the default group meanwhile.
        group = dist.new_group(backend="gloo")
        future = dcp.async_save(state(), storage_writer=writer("/step-1"), process_group=group)
        losses += [step(number) for number in range(1, 4)]
        future.result()
        print(json.dumps(losses))
        """
    )
    (first, _) = run(tmp_path, 2, body, uri=f"file://{tmp_path}/run")
    body = train + (
        """
        loaded = state()
        dcp.load(loaded, storage_reader=reader("/step-1"))
        set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        print(json.dumps([step(number) for number in range(1, 4)]))
        """
    )
    (again, *_) = run(tmp_path, 3, body, uri=f"file://{tmp_path}/run")
    losses, after = (json.loads(outcome.output.splitlines()[0]) for outcome in (first, again))
    assert losses[1:] == pytest.approx(after, rel=1e-5)


def test_async_save_in_another_process(tmp_path: Path) -> None:
    body = """
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
        one = writer(staging="shared")
        for step in (1, 2):
            state = sharded(mesh)
            future = dcp.async_save(
                state, checkpoint_id=f"step-{step}", storage_writer=one,
                async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            )
            clobber(state)
            future.result()
            state = sharded(mesh, empty=True)
            dcp.load(state, checkpoint_id=f"step-{step}", storage_reader=reader())
            check(state, mesh)
        future = dcp.async_save(
            sharded(mesh), checkpoint_id="step-3", storage_writer=writer(),
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        )
        try:
            future.result()
        except BaseException as error:
            print("refused", str(error).replace("\\n", " "))
        assert committed("/step-3") == 0
        import torch.distributed.checkpoint._async_process_executor as executor
        executor._CHECKPOINT_PROCESS = None  # ends it
        import gc; gc.collect()
    """
    for outcome in run(tmp_path, 2, body, uri=f"file://{tmp_path}/run"):
        assert "staging='shared'" in outcome.output


def test_replicas_on_a_mesh_of_two_dimensions(tmp_path: Path) -> None:
    body = """
        from torch.distributed.tensor import distribute_tensor
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
        whole = torch.arange(1200.0).reshape(60, 20)
        for step, placements in enumerate([[Replicate(), Shard(0)], [Shard(0), Shard(1)], [Shard(1), Replicate()]]):
            state = {"x": distribute_tensor(whole, grid, placements), "n": step}
            future = dcp.async_save(state, storage_writer=writer(f"/{step}"))
            state["x"].to_local().zero_()
            future.result()
            target = {"x": distribute_tensor(torch.zeros(60, 20), grid, [Shard(1), Shard(0)]), "n": -1}
            dcp.load(target, storage_reader=reader(f"/{step}"))
            assert torch.equal(target["x"].full_tensor(), whole), placements
            assert target["n"] == step
    """
    run(tmp_path, 4, body, uri=f"file://{tmp_path}/run")
    for step in range(3):
        stored = sum(path.stat().st_size for path in (tmp_path / "run" / str(step)).rglob("rank-[0-3].bin"))
        assert stored < 4800 + 4 * 600, "each piece once"


@pytest.mark.parametrize("background", [False, True])
def test_a_rank_that_fails_fails_the_save_on_all(tmp_path: Path, background: bool) -> None:
    body = f"""
        store = writer_module.store_shard
        def broken(shards, shard, mine):
            if RANK == 1:
                raise OSError("the disk of rank 1 is full")
            return store(shards, shard, mine)

        one = writer()
        def save(id_):
            if {background}:
                dcp.async_save(sharded(mesh), checkpoint_id=id_, storage_writer=one).result()
            else:
                dcp.save(sharded(mesh), checkpoint_id=id_, storage_writer=one)

        writer_module.store_shard = broken
        try:
            save("step-1")
        except CheckpointException as error:
            assert list(error.failures) == [1]
            print("failed:", error.failures[1][0])
        assert committed("/step-1") == 0
        writer_module.store_shard = store
        dist.barrier()
        save("step-1")
        state = sharded(mesh, empty=True)
        dcp.load(state, checkpoint_id="step-1", storage_reader=reader())
        check(state, mesh)
    """
    for outcome in run(tmp_path, 2, body, uri=f"file://{tmp_path}/run"):
        assert "failed: the disk of rank 1 is full" in outcome.output


def test_a_part_that_fails_in_a_worker_fails_the_save_on_all(tmp_path: Path) -> None:
    """Stock DCP may commit here what is not whole; the shard of rank 1 cannot be stored, its folder is a file."""
    body = """
        import pathlib
        place = pathlib.Path(URI.removeprefix("file://")) / "step-1"
        if RANK == 1:
            (place / "shards").mkdir(parents=True)
            (place / "shards" / "by").mkdir()
            (place / "shards" / "by" / "right").write_bytes(b"in the way")
        dist.barrier()
        one = writer("/step-1", prefix_strategy=RoundRobinPrefixStrategy(["left", "right"]))
        try:
            dcp.save(sharded(mesh), storage_writer=one)
        except CheckpointException as error:
            print("failed on", list(error.failures))
        assert committed("/step-1") == 0
    """
    for outcome in run(tmp_path, 2, body, uri=f"file://{tmp_path}/run"):
        assert "failed on [1]" in outcome.output


def test_a_rank_that_is_killed_leaves_no_checkpoint(tmp_path: Path) -> None:
    body = """
        def killed(shards, shard, mine):
            os.kill(os.getpid(), signal.SIGKILL)

        if RANK == 1:
            writer_module.store_shard = killed
        try:
            dcp.save(sharded(mesh), storage_writer=writer("/step-1"))
        except BaseException as error:
            print("failed:", type(error).__name__)
        assert committed("/step-1") == 0
        print("done", flush=True)
        shutdown()
        os._exit(0)  # the process group is broken
    """
    first, _ = run(tmp_path, 2, body, uri=f"file://{tmp_path}/run", killed=[1])
    assert "failed:" in first.output


def test_partial_placements_are_refused_on_all_ranks(tmp_path: Path) -> None:
    body = """
        state = sharded(mesh)
        state["model"]["sum"] = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
        for save in (dcp.save, lambda *args, **options: dcp.async_save(*args, **options).result()):
            try:
                save(state, storage_writer=writer("/step-1"))
            except (CheckpointException, ValueError, TypeError) as error:
                print("refused:", str(error).lower().replace("\\n", " "))
        assert committed("/step-1") == 0
    """
    for outcome in run(tmp_path, 2, body, uri=f"file://{tmp_path}/run"):
        assert len(re.findall("refused:.*partial placements", outcome.output)) == 2
        assert "model.sum" in outcome.output


def test_existing_checkpoints_cached_plans_and_ranks_for_themselves(tmp_path: Path) -> None:
    body = """
        from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
        dcp.save(sharded(mesh), storage_writer=writer("/step-1"))
        try:
            dcp.save(sharded(mesh), storage_writer=writer("/step-1", overwrite=False))
        except CheckpointException as error:
            print("refused:", "Checkpoint already exists" in str(error))

        one = writer()
        for step in (2, 3, 4):
            state = {"w": part(torch.full((10, 3), float(step)), mesh, Shard(0)), "same": torch.full((5,), float(step))}
            dcp.save(
                state, checkpoint_id=f"step-{step}", storage_writer=one,
                planner=DefaultSavePlanner(enable_plan_caching=True),
            )
        for step in (2, 3, 4):
            state = {"w": part(torch.zeros(10, 3), mesh, Shard(0)), "same": torch.zeros(5)}
            dcp.load(state, checkpoint_id=f"step-{step}", storage_reader=reader())
            assert bool((state["w"].to_local() == step).all()) and bool((state["same"] == step).all())

        dcp.save({"mine": torch.full((4,), float(RANK)), "n": RANK}, storage_writer=writer("/5"), use_collectives=False)
        state = {"mine": torch.zeros(4), "n": -1}
        dcp.load(state, storage_reader=reader("/5"))
        assert state["n"] == RANK and bool((state["mine"] == RANK).all())
    """
    for outcome in run(tmp_path, 2, body, uri=f"file://{tmp_path}/run"):
        assert "refused: True" in outcome.output


def test_sharded_tensors_of_old(tmp_path: Path) -> None:
    body = """
        from torch.distributed._shard.sharded_tensor import Shard as Piece, init_from_local_shards
        def old(value):
            pieces = [
                Piece.from_tensor_and_offsets(torch.full((2, 5), value + number), [4 * RANK + 2 * number, 0], RANK)
                for number in range(2)
            ]
            return init_from_local_shards(pieces, 8, 5)
        for step in range(2):
            state = {"old": old(10.0 * RANK), "n": step}
            if step:
                dcp.async_save(state, storage_writer=writer("/1"), process_group=dist.new_group()).result()
            else:
                dcp.save(state, storage_writer=writer("/0"))
            target = {"old": old(-1.0), "n": -1}
            dcp.load(target, storage_reader=reader(f"/{step}"))
            for number, piece in enumerate(target["old"].local_shards()):
                assert bool((piece.tensor == 10.0 * RANK + number).all())
            whole = {"old": part(torch.zeros(8, 5), mesh, Shard(1))}
            dcp.load(whole, storage_reader=reader(f"/{step}"))
            assert whole["old"].full_tensor()[:, 0].tolist() == [0, 0, 1, 1, 10, 10, 11, 11]
    """
    run(tmp_path, 2, body, uri=f"file://{tmp_path}/run")


def test_on_azure_through_azurite(tmp_path: Path, az_container: Container) -> None:
    uri, options = f"{az_container.uri}/run", az_container.options
    run(tmp_path, 2, SAVE_BOTH_WAYS, uri=uri, options=options)
    with store(f"{uri}/step-2", options=options) as here:
        assert here.verify().shards == 3


def test_on_s3_through_localstack(tmp_path: Path, s3_bucket: Bucket) -> None:
    uri, options = f"{s3_bucket.uri}/run", s3_bucket.options
    run(tmp_path, 2, SAVE_BOTH_WAYS, uri=uri, options=options)
    run(tmp_path, 3, LOAD_BOTH, uri=uri, options=options)
    with store(f"{uri}/step-2", options=options) as here:
        assert here.verify().shards == 3
        rows = np.concatenate([here.load(rank=rank)["model.rows"].numpy() for rank in range(2)])
        assert rows.shape == (1001, 300)
    assert not s3_bucket.uploads()
