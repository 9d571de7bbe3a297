"""Saves inside of a DataLoader's worker, a daemon forked from the trainer: alone it may, for a job it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3dlio import CheckpointStore
from tests.frameworks.dcp_ranks import run
from tests.frameworks.dcp_states import SMALL

pytestmark = pytest.mark.slow

SAVING = """
    import multiprocessing
    from s3dlio import CheckpointStore, ConfigError

    class Saving(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            assert multiprocessing.current_process().daemon
            return save()

    def in_a_worker():
        loader = torch.utils.data.DataLoader(
            Saving(), num_workers=1, collate_fn=list, multiprocessing_context="fork", timeout=60
        )
        (found,), = loader
        return found
"""


def test_a_worker_saves_on_its_own(tmp_path: Path) -> None:
    body = """
    def save():
        dcp.save({"w": torch.ones(3)}, checkpoint_id="dcp", storage_writer=writer(), no_dist=True)
        with CheckpointStore(URI, **OPTIONS) as store:
            return store.save(7, {"w": torch.ones(3)}).step

    assert in_a_worker() == 7
    with CheckpointStore(URI, **OPTIONS) as store:
        assert store.load()["w"].tolist() == [1, 1, 1]
    state = {"w": torch.zeros(3)}
    dcp.load(state, checkpoint_id="dcp", storage_reader=reader(), no_dist=True)
    assert state["w"].tolist() == [1, 1, 1]
    """
    run(tmp_path, 1, SAVING + body, uri=f"file://{tmp_path}/run")


def test_a_worker_is_no_rank(tmp_path: Path) -> None:
    """Neither one that its rank had saved before, nor one whose rank begins to save afterwards."""
    body = """
    def save():
        with CheckpointStore(URI, **OPTIONS) as store:
            refused = []
            for use in (lambda: store.save(1, {"w": 1}), store.load):
                try:
                    use()
                except ConfigError as error:
                    refused.append(str(error))
            store.save(100 + RANK, {"w": RANK}, coordinator=None)
            return refused

    for step in (1, 2):
        for refused in in_a_worker():
            assert "forked from a rank" in refused, refused
        with CheckpointStore(URI, **OPTIONS) as store:
            assert store.save(step, {"w": torch.ones(3), "own": RANK}).world_size == 2
            assert store.load(step)["own"] == RANK
    """
    run(tmp_path, 2, SAVING + body, uri=f"file://{tmp_path}/run")
    with CheckpointStore(f"file://{tmp_path}/run", **SMALL) as store:
        assert sorted(info.step for info in store.list()) == [1, 2, 100, 100, 101, 101]
