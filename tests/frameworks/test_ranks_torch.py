"""torch states of several ranks through ``store.save``: any layout, other numbers of ranks, none at all.

Each launch of processes takes seconds, so each checks much.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3dlio import CheckpointStore, ConfigError
from s3dlio.reader import ShardReader, Wanted
from s3dlio.state_reader import open_state
from s3dlio.tensors.box import Box
from tests.frameworks.dcp_ranks import ROOT, run
from tests.frameworks.dcp_states import SMALL
from tests.frameworks.torch_layouts import WHOLE, agree, whole

pytestmark = pytest.mark.slow

SAVE = """
    from s3dlio import CheckpointStore, ConfigError, UnsupportedError
    from tests.frameworks.torch_layouts import (
        ON_FOUR, ON_TWO, WHOLE, agree, gathered, laid_out, model, state_of, tensor_parallel, trained, whole
    )

    expected = {}
    with CheckpointStore(URI, **OPTIONS) as store:
        handles = []
        def save(step, state):
            handles.append(store.save_async(step, state))
            expected[step] = gathered(state)

        made, optimizer = trained(init_device_mesh("cpu", (4,)))
        save(1, state_of(made, optimizer))
        for parameter in made.parameters():  # training goes on
            parameter.data.to_local().zero_()
        hybrid, optimizer = trained(init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards")))
        save(2, state_of(hybrid, optimizer))
        cut, optimizer = tensor_parallel()
        save(3, state_of(cut, optimizer))
        state = laid_out(ON_FOUR)
        handles.append(store.save_async(4, state))
        for tensor in state.values():
            tensor.detach().to_local().view(torch.uint8).fill_(7)
        ddp = torch.nn.parallel.DistributedDataParallel(model())
        ddp(torch.randn(6, 13)).mean().backward()
        torch.manual_seed(RANK)
        save(5, {"ddp": ddp.state_dict(), "rng": torch.get_rng_state(), "rank": RANK})
        for handle in handles:
            assert handle.result(60).world_size == 4
        if RANK == 0:
            torch.save(expected, ARGS["expected"])

        # what each had comes back to it
        own = store.load(5)
        assert own["rank"] == RANK and torch.equal(own["rng"], torch.get_rng_state())
        state = laid_out(ON_FOUR, zeros=True)
        store.load(4, into=state)
        agree(state, {name: whole(name) for name in WHOLE})
        for done, (again, optimizer) in ((2, trained(init_device_mesh("cpu", (4,)), seed=1)), (3, tensor_parallel(1))):
            state = state_of(again, optimizer)
            store.load(done, into=state)
            for found, value in zip(torch.utils._pytree.tree_leaves(gathered(state)),
                                    torch.utils._pytree.tree_leaves(expected[done]), strict=True):
                assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value

        # terms of a sum
        summed = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
        try:
            store.save(6, {"deep": [summed]})
        except UnsupportedError as error:
            assert "state['deep'][0]: its shards are terms of a sum" in str(error), error
        else:
            raise AssertionError("not refused")
        target = laid_out(ON_FOUR)
        target["copies"] = DTensor.from_local(torch.ones(50, 50), mesh, [Partial()])
        target["few"] = target["few"].double()
        try:
            store.load(4, into=target)
        except ConfigError as error:
            assert "state['copies']: its shards are terms of a sum" in str(error), error
            assert "state['few']: stored float32 [3, 5], target float64 [3, 5]" in str(error), error
        else:
            raise AssertionError("not refused")

        # rows here, columns there: as many elements as the array has
        axis = RANK % 2
        local = torch.ones(4, 2) if axis else torch.ones(2, 4)
        pair = init_device_mesh("cpu", (2, 2))
        mine = DTensor.from_local(
            local, pair, [Replicate(), Shard(axis)], run_check=False, shape=torch.Size([4, 4]), stride=(4, 1)
        )
        try:
            store.save(7, {"mine": mine})
        except ConfigError as error:
            print("refused:", error)
        else:
            raise AssertionError("not refused")
        assert [info.step for info in store.list()] == [1, 2, 3, 4, 5]
"""

LOAD_TWO = """
    from s3dlio import CheckpointStore, ConfigError
    from tests.frameworks.torch_layouts import (
        ON_FOUR, ON_TWO, WHOLE, agree, gathered, laid_out, model, state_of, tensor_parallel, trained, whole
    )

    expected = torch.load(ARGS["expected"])
    with CheckpointStore(URI, **OPTIONS) as store:
        for step in (1, 2):
            made, optimizer = trained(init_device_mesh("cpu", (2,)), seed=1)
            state = state_of(made, optimizer)
            loaded = store.load(step, into=state)
            agree(loaded, expected[step])
            assert loaded["model"]["0.weight"] is state["model"]["0.weight"]
            agree(made.state_dict(), expected[step]["model"])
        state = laid_out(ON_TWO, zeros=True)
        store.load(4, into=state)
        agree(state, {name: whole(name) for name in WHOLE})
        agree(store.load(4), {name: whole(name) for name in WHOLE})
        try:
            store.load(5)
        except ConfigError as error:
            assert "each rank has saved its own rng, state['rank']" in str(error), error
        assert store.load(5, rank=3)["rank"] == 3
        agree(store.load(5, names="ddp.*"), {f"ddp.{name}": value for name, value in expected[5]["ddp"].items()})
        store.save(8, state)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where four ranks have saved; ``expected.pt`` has the whole tensors."""
    place = tmp_path_factory.mktemp("ranks")
    outcomes = run(place, 4, SAVE, uri=f"file://{place}/run", expected=str(place / "expected.pt"))
    assert all("refused: the parts of mine on all ranks overlap" in outcome.output for outcome in outcomes)
    return place


@pytest.fixture
def store(place: Path) -> Any:
    with CheckpointStore(f"file://{place}/run", **SMALL) as store:
        yield store


def test_two_ranks_load_what_four_have_saved(place: Path) -> None:
    run(place, 2, LOAD_TWO, uri=f"file://{place}/run", expected=str(place / "expected.pt"))
    with CheckpointStore(f"file://{place}/run", **SMALL) as store:
        agree(store.load(8), {name: whole(name) for name in WHOLE})


def test_one_process_loads_plain_tensors(place: Path, store: CheckpointStore) -> None:
    expected = torch.load(place / "expected.pt")
    for step in (1, 2, 3):
        loaded = store.load(step)
        agree(loaded, expected[step])
        assert type(loaded["model"]["0.weight"]) is torch.Tensor
    loaded = store.load(4)
    agree(loaded, {name: whole(name) for name in WHOLE})
    assert type(loaded["param"]) is torch.nn.Parameter
    target = {name: torch.zeros_like(whole(name).view(torch.uint8)).view(whole(name).dtype) for name in WHOLE}
    store.load(4, into=target)
    agree(target, {name: whole(name) for name in WHOLE})
    with pytest.raises(ConfigError, match=r"each rank has saved its own rng, state\['rank'\]"):
        store.load(5)
    agree(store.load(5, rank=2)["ddp"], expected[5]["ddp"])


def test_each_element_is_stored_once(place: Path, store: CheckpointStore) -> None:
    for info in store.list()[:5]:
        shards = list(place.rglob(f"{info.id}/rank-*.bin"))
        assert len(shards) == 4
        data = {path.name: path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little") for path in shards}
        expected = sum(spec.nbytes for _, spec in specs(store, info.step))
        if info.step == 5:
            expected += 3 * store.load(5, rank=0)["rng"].numel()
        assert sum(data.values()) == expected, info
        if info.step == 2:
            largest = 37 * 13 * 4 // 2
            assert max(data.values()) - min(data.values()) <= largest, "replicas are spread over those that have them"


def specs(store: CheckpointStore, step: int) -> list[tuple[str, Any]]:
    with store._open_checkpoint(step, None) as (manifest, reader):
        state = open_state(manifest, reader, 0)
        return list(zip(state.names, state.specs, strict=True))


def test_rows_read_their_bytes_only(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    plain = ShardReader.pieces

    def pieces(self: ShardReader, record: Any, index: Any, wanted: list[Wanted]) -> None:
        asked.extend((record.rank, each.stop - each.start) for each in wanted)
        plain(self, record, index, wanted)

    monkeypatch.setattr(ShardReader, "pieces", pieces)
    with store._open_checkpoint(4, None) as (manifest, reader):
        state = open_state(manifest, reader)
        read = state.memory(state.names.index("rows"), Box((240, 0), (20, 30)))
        state.read([read])
        # 251 rows on each of four ranks, of two bytes
        assert asked == [(0, 11 * 60), (1, 9 * 60)]
        assert torch.equal(torch.from_numpy(state.array(read).view(np.uint8)), whole("rows")[240:260].view(torch.uint8))


def test_without_torch_arrays_are_filled(place: Path) -> None:
    """NumPy's may take what tensors gave, in a process that has no torch."""
    script = """
        import sys
        sys.modules["torch"] = None
        import numpy as np
        from s3dlio import CheckpointStore
        from s3dlio.tensors.dtypes import numpy_dtype

        shapes = {shapes!r}
        with CheckpointStore({uri!r}, memory=48 << 20, workers=1) as store:
            target = {{name: np.zeros(shape, numpy_dtype(dtype)) for name, (shape, dtype) in shapes.items()}}
            store.load(4, into=target)
            for name, array in target.items():
                print(name, array.tobytes().hex())
    """
    shapes = {name: (shape, str(dtype).removeprefix("torch.")) for name, (shape, dtype) in WHOLE.items()}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script).format(shapes=shapes, uri=f"file://{place}/run")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    for name in WHOLE:
        assert "".join(found[name]) == whole(name).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes().hex()
