"""Lightning trains, saves behind the loop's back, and resumes: real trainers on folders, O_DIRECT and S3."""

from __future__ import annotations

import enum
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment

from s3dlio import CheckpointStore
from s3dlio.engine.errors import ConfigError, UnsupportedError
from s3dlio.frameworks.lightning import S3dlioCheckpointIO
from tests.frameworks.lightnings import WARNINGS, Model, same, trainer, weights
from tests.servers.s3_server import Bucket
from tests.store.live import SMALL, keeping_pool

pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]

Opening = Callable[..., S3dlioCheckpointIO]


class Colour(enum.Enum):
    RED = 1


@pytest.fixture(scope="module", autouse=True)
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointStore]:
    with keeping_pool(tmp_path_factory.mktemp("pool")) as store:
        yield store


@pytest.fixture
def make() -> Iterator[Opening]:
    made: list[S3dlioCheckpointIO] = []

    def make_one(**options: Any) -> S3dlioCheckpointIO:
        made.append(S3dlioCheckpointIO(**{**SMALL, **options}))
        return made[-1]

    yield make_one
    for one in made:
        one.teardown()


def run_and_resume(root: Path, io: S3dlioCheckpointIO, dirpath: str) -> None:
    """Four epochs at once, and two and two with everything thrown away between: the same weights."""
    whole = Model(rate=0.1)
    trainer(root, io, [], epochs=4).fit(whole)
    first = ModelCheckpoint(dirpath=dirpath, monitor="loss", save_top_k=2, save_last=True)
    trainer(root, io, [first], epochs=2).fit(Model(rate=0.1))
    assert first.last_model_path == f"{dirpath}/last.ckpt"
    assert io.latest(dirpath) == first.last_model_path

    again = Model(rate=0.1)
    second = ModelCheckpoint(dirpath=dirpath, monitor="loss", save_top_k=2, save_last=True)
    runner = trainer(root, io, [second], epochs=4)
    runner.fit(again, ckpt_path=first.last_model_path)
    assert same(weights(again), weights(whole))
    assert second.last_model_path == first.last_model_path
    assert len(second.best_k_models) == 2
    assert second.best_k_models.keys() != first.best_k_models.keys()
    for path in [*second.best_k_models, second.last_model_path]:
        assert io.load_checkpoint(path)["hyper_parameters"] == {"rate": 0.1}
    for path in first.best_k_models.keys() - second.best_k_models.keys():
        with pytest.raises(FileNotFoundError):
            io.load_checkpoint(path)
    io.teardown()


def test_a_run_in_a_folder_goes_on_where_it_was(tmp_path: Path, make: Opening) -> None:
    run_and_resume(tmp_path, make(), str(tmp_path / "run"))


def test_a_run_on_direct_goes_on_where_it_was(tmp_path: Path, make: Opening) -> None:
    run_and_resume(tmp_path, make(), f"direct://{tmp_path}/run")


@pytest.mark.slow
def test_a_run_on_s3_goes_on_where_it_was(tmp_path: Path, make: Opening, s3_bucket: Bucket) -> None:
    run_and_resume(tmp_path, make(options=s3_bucket.options), f"{s3_bucket.uri}/runs/one")


@pytest.mark.parametrize("scheme", ["", "direct://"])
def test_lightning_finds_the_last_checkpoint_and_counts_versions(tmp_path: Path, make: Opening, scheme: str) -> None:
    dirpath = f"{scheme}{tmp_path}/run"
    io = make()
    for _ in range(2):
        callback = ModelCheckpoint(dirpath=dirpath, filename="m", save_last=True)
        runner = trainer(tmp_path, io, [callback], epochs=1)
        runner.fit(Model())
    assert sorted(os.listdir(tmp_path / "run")) == ["last-v1.ckpt", "last.ckpt", "m-v1.ckpt", "m.ckpt"]
    runner.fit_loop.max_epochs = 2
    runner.fit(Model(), ckpt_path="last")
    assert runner.ckpt_path == f"{tmp_path}/run/last-v1.ckpt"
    assert runner.current_epoch == 2


def test_last_may_be_a_link(tmp_path: Path, make: Opening) -> None:
    io = make()
    callback = ModelCheckpoint(dirpath=tmp_path / "run", save_last="link")
    trainer(tmp_path, io, [callback]).fit(Model())
    link = tmp_path / "run/last.ckpt"
    assert link.is_symlink()
    assert io.load_checkpoint(link)["global_step"] == 4
    io.remove_checkpoint(link)
    io.teardown()
    assert not link.is_symlink()
    assert io.load_checkpoint(callback.best_model_path)["global_step"] == 4


def test_saving_a_path_again_replaces_what_was_there(tmp_path: Path, make: Opening) -> None:
    io = make()
    for step in range(3):
        io.save_checkpoint({"global_step": step, "w": torch.full((3,), step)}, tmp_path / "a.ckpt")
    assert io.load_checkpoint(tmp_path / "a.ckpt")["w"].tolist() == [2, 2, 2]
    io.teardown()
    with CheckpointStore(f"file://{tmp_path}/a.ckpt", **SMALL) as store:
        assert [info.step for info in store.list()] == [2]
        assert store.latest().framework == "lightning"  # type: ignore[union-attr]


def test_a_path_that_was_removed_may_be_saved_again_at_once(tmp_path: Path, make: Opening) -> None:
    io = make()
    for step in range(3):
        io.save_checkpoint({"global_step": step}, tmp_path / "a.ckpt")
        io.remove_checkpoint(tmp_path / "a.ckpt")
    io.save_checkpoint({"global_step": 9}, tmp_path / "a.ckpt")
    assert io.load_checkpoint(tmp_path / "a.ckpt") == {"global_step": 9}


def test_what_is_saved_may_change_at_once(tmp_path: Path, make: Opening) -> None:
    io = make()
    state = {"w": torch.arange(1 << 20)}
    io.save_checkpoint(state, tmp_path / "a.ckpt")
    state["w"].zero_()
    assert torch.equal(io.load_checkpoint(tmp_path / "a.ckpt")["w"], torch.arange(1 << 20))


def test_hyper_parameters_that_are_objects_need_pickle_by_name(tmp_path: Path, make: Opening) -> None:
    path = tmp_path / "run/a.ckpt"
    runner = trainer(tmp_path, make(), [], epochs=1)
    runner.fit(Model(colour=Colour.RED))
    with pytest.raises(UnsupportedError, match=r"checkpoint\['hyper_parameters'\]\['colour'\].*pickle=True"):
        runner.save_checkpoint(path)
    assert not path.exists() or not any(path.iterdir())

    runner = trainer(tmp_path, io := make(pickle=True), [], epochs=1)
    runner.fit(Model(colour=Colour.RED))
    runner.save_checkpoint(path)
    assert io.load_checkpoint(path)["hyper_parameters"] == {"colour": Colour.RED}
    assert io.load_checkpoint(path, weights_only=False)["hyper_parameters"] == {"colour": Colour.RED}
    for refusing, options in ((io, {"weights_only": True}), (make(), {})):
        with pytest.raises(ConfigError, match="pickled objects"):
            refusing.load_checkpoint(path, **options)


def test_fabric_saves_and_loads(tmp_path: Path, make: Opening) -> None:
    io = make()
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[io, LightningEnvironment()])
    model = torch.nn.Linear(3, 2)
    before = weights(model)
    fabric.save(tmp_path / "a.ckpt", {"model": model, "iteration": 5})
    torch.nn.init.zeros_(model.weight)
    state = {"model": model, "iteration": 0}
    fabric.load(tmp_path / "a.ckpt", state)
    assert same(weights(model), before)
    assert state["iteration"] == 5


def test_tensors_go_where_map_location_says(tmp_path: Path, make: Opening) -> None:
    io = make()
    tensor = torch.ones(2)
    path = tmp_path / "a.ckpt"
    io.save_checkpoint({"a": [tensor, (tensor, 1)], "b": {"c": tensor}}, path)
    for where in ("meta", torch.device("meta"), {"cpu": "meta"}):
        found = io.load_checkpoint(path, map_location=where)
        assert {each.device.type for each in (found["a"][0], found["a"][1][0], found["b"]["c"])} == {"meta"}
        assert found["a"][0] is found["b"]["c"]
    asked: list[str] = []

    def stay(storage: Any, location: str) -> Any:
        asked.append(location)
        return storage

    for answer in (stay, lambda *_: None):
        found = io.load_checkpoint(path, map_location=answer)
        assert found["a"][1][0].tolist() == [1, 1]
        assert found["a"][0].device.type == "cpu"
    assert set(asked) == {"cpu"}


@pytest.mark.parametrize("rate", [0.5, Colour.RED], ids=str)
def test_a_module_is_made_of_a_checkpoint(tmp_path: Path, make: Opening, rate: object) -> None:
    io = make(pickle=True)
    callback = ModelCheckpoint(dirpath=tmp_path / "run")
    trainer(tmp_path, io, [callback], epochs=1).fit(model := Model(rate=rate))
    found = io.load_module(Model, callback.best_model_path)
    assert found.hparams == {"rate": rate}
    assert same(weights(found), weights(model))


def test_the_plugin_goes_to_other_processes(tmp_path: Path, make: Opening) -> None:
    io = make()
    io.save_checkpoint({"global_step": 1}, tmp_path / "a.ckpt")
    other = pickle.loads(pickle.dumps(io))
    other.save_checkpoint({"global_step": 2}, tmp_path / "b.ckpt")
    assert other.load_checkpoint(tmp_path / "b.ckpt") == {"global_step": 2}
    other.teardown()


def test_latest_is_none_where_there_is_nothing(tmp_path: Path, make: Opening) -> None:
    assert make().latest(tmp_path) is None


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, make: Opening) -> None:
    io = make()
    file = tmp_path / "old.ckpt"
    torch.save({}, file)
    with pytest.raises(ConfigError, match="TorchCheckpointIO"):
        io.load_checkpoint(file)
    with pytest.raises(ConfigError, match="move the file away"):
        io.save_checkpoint({}, file)
    with pytest.raises(FileNotFoundError, match="no committed checkpoint"):
        io.load_checkpoint(tmp_path / "none.ckpt")
    with CheckpointStore(f"file://{tmp_path}/bytes", **SMALL) as store:
        store.save(1, b"payload")
    with pytest.raises(ConfigError, match="no checkpoint of Lightning"):
        io.load_checkpoint(tmp_path / "bytes")
    io.remove_checkpoint(file)
    io.remove_checkpoint(tmp_path / "none.ckpt")
    io.teardown()
    assert not file.exists()


def test_what_model_checkpoint_makes_of_a_file_uri_is_refused(tmp_path: Path, make: Opening) -> None:
    callback = ModelCheckpoint(dirpath=f"file://{tmp_path}/run")
    with pytest.raises(ConfigError, match="without file://"):
        trainer(tmp_path, make(), [callback], epochs=1).fit(Model())
    io = make()
    io.save_checkpoint({"global_step": 3}, f"file://{tmp_path}/a.ckpt")  # which the plugin itself takes
    assert io.load_checkpoint(tmp_path / "a.ckpt") == {"global_step": 3}


def test_keep_last_is_refused() -> None:
    with pytest.raises(ConfigError, match="save_top_k"):
        S3dlioCheckpointIO(keep_last=2)
