"""What torch DCP's storage computes without storing anything: prefixes, places, tickets, boxes, packing, metadata."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.storage import WriteResult

from s3dlio.engine.errors import ConfigError, ManifestError, S3dlioError, UnsupportedError
from s3dlio.frameworks.dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3dlioStorageReader,
    S3dlioStorageWriter,
)
from s3dlio.frameworks.dcp import metadata as codec
from s3dlio.frameworks.dcp.packing import moves, pack, subset
from s3dlio.frameworks.dcp.places import number_of, place_of, rank_place
from s3dlio.frameworks.dcp.prefixes import folders
from s3dlio.frameworks.dcp.regions import wanted
from s3dlio.frameworks.dcp.stored import StoredItem, StoredShard, check_complete, gathered, results_of
from s3dlio.frameworks.dcp.tickets import Ticket, new_ticket, redeem
from s3dlio.ids import CheckpointId
from s3dlio.records import ShardRecord
from s3dlio.strategy import Strategy, parse_shard_key, shard_key, spread_key

ID = CheckpointId(5, "20260101T000000.000000Z-00000000")


# prefixes


@pytest.mark.parametrize(
    ("strategy", "rank", "prefix"),
    [
        (DefaultPrefixStrategy(), 3, "__3_"),
        (RoundRobinPrefixStrategy(["a", "b"]), 3, "b/__3_"),
        (RoundRobinPrefixStrategy(["a", "b"], epoch_num=7), 2, "a/epoch_7/__2_"),
        (BinaryPrefixStrategy(prefix_count=8), 1, "1000000000/__1_"),
        (BinaryPrefixStrategy(prefix_count=8, min_prefix_length=1), 6, "011/__6_"),
        (BinaryPrefixStrategy(prefix_count=8, min_prefix_length=1), 14, "011/__14_"),
        (BinaryPrefixStrategy(2, 4, 4), 3, "1100/epoch_2/__3_"),
        (HexPrefixStrategy(prefix_count=256, min_prefix_length=2), 0x1F, "f1/__31_"),
        (HexPrefixStrategy(prefix_count=256), 0x1F, "f100000000/__31_"),
        (NumericPrefixStrategy(3, None, 2, 9), 5, "21/__5_"),
        (BinaryPrefixStrategy(), 5, "0000000000/__5_"),  # a world of one
    ],
)
def test_prefixes(strategy: Any, rank: int, prefix: str) -> None:
    assert strategy(rank) == prefix
    assert folders(strategy, rank) == prefix.rpartition("/")[0]


def test_neighbours_differ_in_the_first_digit() -> None:
    strategy = HexPrefixStrategy(prefix_count=64)
    assert len({strategy(rank)[0] for rank in range(16)}) == 16
    assert len({strategy(rank).split("/")[0] for rank in range(64)}) == 64


@pytest.mark.parametrize(
    "make",
    [
        lambda: RoundRobinPrefixStrategy([]),
        lambda: RoundRobinPrefixStrategy("abc"),
        lambda: BinaryPrefixStrategy(epoch_num="1"),  # type: ignore[arg-type]
        lambda: HexPrefixStrategy(min_prefix_length=0),
        lambda: HexPrefixStrategy(prefix_count=0),
        lambda: NumericPrefixStrategy(17),
    ],
)
def test_prefixes_that_cannot_be(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_spread_key_is_a_shard_of_its_checkpoint() -> None:
    key = spread_key(shard_key(Strategy.FLAT, ID, 3, "none"), "0110/epoch_1")
    assert key == f"shards/by/0110/epoch_1/{ID.name}/rank-3.bin"
    name = parse_shard_key(key)
    assert name is not None
    assert (name.id, name.rank, name.index) == (ID, 3, False)


@pytest.mark.parametrize("prefix", ["..", "a/../b", ".hidden", "a//b", "/a", "a/", "x" * 65, "a b", "/".join("a" * 9)])
def test_prefixes_that_make_no_key(prefix: str) -> None:
    with pytest.raises(ConfigError, match="is no prefix"):
        spread_key(shard_key(Strategy.FLAT, ID, 3, "none"), prefix)


# places


@pytest.mark.parametrize(
    ("base", "id_", "uri"),
    [
        ("file:///runs/a", None, "file:///runs/a"),
        ("file:///runs/a", "step-5", "file:///runs/a/step-5"),
        ("file:///runs/a/", "x/y", "file:///runs/a/x/y"),
        ("direct:///runs/a", "/other/5", "direct:///other/5"),
        ("s3://bucket/run", "/local/5", "file:///local/5"),
        ("file:///runs/a", "s3://bucket/run/7", "s3://bucket/run/7"),
        ("s3://bucket/run", "7", "s3://bucket/run/7"),
    ],
)
def test_places(base: str, id_: str | None, uri: str) -> None:
    assert place_of(base, id_).uri == uri


@pytest.mark.parametrize(
    ("uri", "step"),
    [
        ("s3://bkt/step-00120", 120),
        ("file:///ck/7/", 7),
        ("file:///run", 0),
        ("s3://bkt/a1/b", 0),
        ("file:///x" + "9" * 30, 0),
    ],
)
def test_the_step_is_the_number_at_the_end(uri: str, step: int) -> None:
    assert number_of(uri) == step
    assert place_of(uri, None, step=3).step == 3


def test_a_place_needs_a_name() -> None:
    for wrong in ("", b"bytes"):
        with pytest.raises(ConfigError):
            place_of("file:///runs", wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown scheme"):
        place_of("file:///runs", "gs://bucket/x")


def test_options_belong_to_the_scheme_they_were_given_for() -> None:
    options = {"endpoint_url": "http://127.0.0.1:9"}
    assert dict(place_of("s3://bkt/x", "y", options).location.options)["endpoint_url"] == options["endpoint_url"]
    assert place_of("s3://bkt/x", "/local", options).location.scheme == "file"
    assert rank_place(place_of("file:///a/5", None), 3).uri == "file:///a/5/ranks/3"


@pytest.mark.parametrize(
    ("id_", "known"),
    [
        ("s3://bkt/x", True),
        ("az://acc/con/x", True),
        ("/folder", True),
        ("gs://b/x", False),
        ("folder", False),
        ("s3://", False),
    ],
)
def test_ids_that_name_a_store(id_: str, known: bool) -> None:
    assert S3dlioStorageWriter.validate_checkpoint_id(id_) is known
    assert S3dlioStorageReader.validate_checkpoint_id(id_) is known


def test_options_of_a_writer() -> None:
    with pytest.raises(ConfigError, match="not both"):
        S3dlioStorageWriter("file:///x", strategy="binary", prefix_strategy=DefaultPrefixStrategy())
    with pytest.raises(ConfigError, match="staging must be"):
        S3dlioStorageWriter("file:///x", staging="gpu")
    assert S3dlioStorageWriter("/x/y-3").checkpoint_id == "file:///x/y-3"
    assert "x" in repr(S3dlioStorageWriter("file:///x")) + repr(S3dlioStorageReader("file:///x"))


def test_no_secret_is_told() -> None:
    options = {"access_key_id": "AKIASECRET", "secret_access_key": "verysecret"}
    both = (
        S3dlioStorageWriter("s3://bucket/x", options=options),
        S3dlioStorageReader("s3://bucket/x", options=options),
    )
    assert "SECRET" not in repr(both).upper()
    assert "SECRET" not in str([one.checkpoint_id for one in both]).upper()


# tickets


def test_a_ticket_is_redeemed_for_its_name() -> None:
    held = new_ticket()
    assert redeem(held, Ticket(held.nonce, "ckpt-1-x")) == "ckpt-1-x"


def test_a_plan_from_a_cache_has_no_name() -> None:
    first, second = new_ticket(), new_ticket()
    assert redeem(first, Ticket(first.nonce, "one")) == "one"
    assert redeem(second, Ticket(first.nonce, "one")) is None


@pytest.mark.parametrize("found", [None, Ticket("someone else's", "name"), "odd"])
def test_the_plan_of_another_save_is_refused(found: object) -> None:
    with pytest.raises(S3dlioError, match="plan of another save"):
        redeem(new_ticket(), found)


def test_a_planner_that_loses_tickets_is_borne_with() -> None:
    assert redeem(new_ticket(), Ticket("", "name")) == "name"


def test_ranks_that_found_different_checkpoints_do_not_mix_them() -> None:
    reader = S3dlioStorageReader("file:///x")
    same = [LoadPlan([], storage_data=ID.name)] * 2
    assert reader.prepare_global_plan(same) is same
    with pytest.raises(S3dlioError, match="load one by id="):
        reader.prepare_global_plan([LoadPlan([], storage_data="ckpt-1-a"), LoadPlan([], storage_data="ckpt-1-b")])


# results


def _shard(rank: int, ticket: str | None = "t") -> StoredShard:
    return StoredShard(ShardRecord(rank, f"shards/{ID.name}/rank-{rank}.bin", 1, 5, 0, ID.timestamp), ticket)


def test_results_are_gathered_by_rank() -> None:
    index = MetadataIndex("w", [0])
    rows = [results_of(_shard(0), [(index, StoredItem(0, "tensor", "w", 8, 4))]), results_of(_shard(1, None), [])]
    records, items = gathered(rows, "t")
    assert [record.rank for record in records] == [0, 1]
    assert items == {index: StoredItem(0, "tensor", "w", 8, 4)}


@pytest.mark.parametrize(
    "rows",
    [
        [results_of(_shard(1), [])],
        [[]],
        [[*results_of(_shard(0), []), *results_of(_shard(0), [])]],
        [[WriteResult(MetadataIndex("w"), 1, None)]],
    ],
)
def test_results_without_a_shard_are_refused(rows: Any) -> None:
    with pytest.raises(S3dlioError, match="nothing was committed"):
        gathered(rows, "t")


def test_answers_for_another_save_are_refused() -> None:
    with pytest.raises(S3dlioError, match="two saves ran at once"):
        gathered([results_of(_shard(0, "another"), [])], "t")


def test_an_item_that_nobody_wrote_is_missed() -> None:
    metadata = _metadata()
    items = {MetadataIndex("w", [0, 0]): StoredItem(0, "tensor", "w", 0, 8)}
    with pytest.raises(S3dlioError, match=r"2 items were written by no rank: w at \(2, 0\), step"):
        check_complete(metadata, items)


# boxes


def _read(array: np.ndarray[Any, Any], offsets: list[int], lengths: list[int], cut: int) -> tuple[bytes, int]:
    """The box as a load gets it, its ranges handed over in pieces of ``cut`` bytes; and how many bytes were asked."""
    stored = b"\xff" * 5 + array.tobytes()
    memory = np.frombuffer(bytearray(stored), np.uint8)
    target = np.zeros(int(np.prod(lengths)) * array.itemsize + 8, np.uint8)
    asked = 0
    for each in wanted(array.shape, offsets, lengths, array.itemsize, 5, target.ctypes.data):
        asked += each.stop - each.start
        for at in range(each.start, each.stop, cut):
            end = min(at + cut, each.stop)
            each.copy_from(memory.ctypes.data + at, at - each.start, end - each.start)
    assert not target[-8:].any(), "nothing lands behind the box"
    return target[:-8].tobytes(), asked


@pytest.mark.parametrize("cut", [1, 3, 7, 64, 10_000])
@pytest.mark.parametrize("shape", [(7,), (5, 6), (3, 4, 5), (2, 3, 4, 3), (1, 6, 1)])
def test_every_box_of_an_array(shape: tuple[int, ...], cut: int) -> None:
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    for offsets in itertools.product(*(sorted({0, side // 2}) for side in shape)):
        for lengths in itertools.product(
            *(sorted({1, side - at, (side - at + 1) // 2}) for side, at in zip(shape, offsets, strict=True))
        ):
            box = array[tuple(slice(at, at + length) for at, length in zip(offsets, lengths, strict=True))]
            found, _ = _read(array, list(offsets), list(lengths), cut)
            assert found == box.tobytes(), (offsets, lengths)


def test_rows_ask_for_their_bytes_alone() -> None:
    array = np.arange(60, dtype=np.int32).reshape(10, 6)
    assert _read(array, [2, 0], [3, 6], 1000)[1] == 3 * 6 * 4
    assert _read(array, [2, 1], [3, 2], 1000)[1] == (2 * 6 + 2) * 4


def test_boxes_of_nothing_and_of_a_scalar() -> None:
    assert list(wanted([4, 0], [0, 0], [4, 0], 4, 0, 0)) == []
    (one,) = wanted([], [], [], 8, 100, 0)
    assert (one.start, one.stop) == (100, 108)


@pytest.mark.parametrize("box", [([3], [2]), ([-1], [2]), ([0], [5]), ([0, 0], [1, 1])])
def test_boxes_outside_are_refused(box: tuple[list[int], list[int]]) -> None:
    with pytest.raises(ValueError, match="no box"):
        list(wanted([4], box[0], box[1], 4, 0, 0))


# packing


def _bytes_of(packed: Any) -> bytes:
    memory = np.zeros(packed.layout.total, np.uint8)
    source = packed.source()
    source.fill(memory.ctypes.data, 0, source.total)
    return memory.tobytes()


@pytest.mark.parametrize("keys", [["a"], ["b", "d"], ["c"], ["a", "b", "c", "d", "o"], ["o"], ["t"], []])
def test_a_subset_squeezed_is_the_subset_packed(keys: list[str]) -> None:
    tied = torch.arange(5.0)
    tensors = {
        "a": torch.arange(10, dtype=torch.float32),
        "b": torch.arange(7, dtype=torch.int8),
        "c": tied,
        "d": torch.randn(3, 3).bfloat16(),
        "t": tied,
        "z": torch.empty(0, 3),
    }
    objects = {"o": (torch.arange(4), "x"), "text": "y" * 100_000}
    before = pack(objects, tensors)
    data = bytearray(_bytes_of(before))
    after = subset(before, keys)
    for target, source, length in moves(before, after):
        assert target <= source
        data[target : target + length] = bytes(data[source : source + length])
    head = b"".join(after.layout.header)
    data[: len(head)] = head
    for key in keys:
        if key in tensors:
            start, size = after.place(key)
            assert bytes(data[start : start + size]) == tensors[key].contiguous().view(torch.uint8).numpy().tobytes()
    assert list(after.nodes) == [key for key in before.nodes if key in keys]
    assert json.loads(bytes(data[8 : len(head)]))  # still a safetensors header
    if "o" not in keys and "c" not in keys:
        assert "c" not in after.leaves.names or "t" in keys


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_sparse_and_odd_items_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="emb: a sparse tensor"):
        pack({}, {"emb": torch.eye(3).to_sparse()})
    with pytest.raises(UnsupportedError, match="pickle=True"):
        pack({"rng": object()}, {})
    with pytest.raises(UnsupportedError, match="'q'"):
        pack({}, {"q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)})


# metadata


def _metadata() -> Metadata:
    chunks = [
        ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([2, 4])),
        ChunkStorageMetadata(torch.Size([2, 0]), torch.Size([2, 4])),
    ]
    properties = TensorProperties(torch.bfloat16, torch.strided, True, torch.contiguous_format, False)
    return Metadata(
        {"w": TensorStorageMetadata(properties, torch.Size([4, 4]), chunks), "step": BytesStorageMetadata()},
        planner_data={"w": ("model", 0, "w"), "step": ("step",)},
        storage_meta=StorageMeta("s3://bkt/x", "save", None, ["a"]),
        version="1.0.0",
    )


def _items() -> dict[MetadataIndex, StoredItem]:
    return {
        MetadataIndex("w", [0, 0], 0): StoredItem(0, "tensor", "w", 64, 16),
        MetadataIndex("w", [2, 0], 1): StoredItem(1, "tensor", "w", 64, 16),
        MetadataIndex("step"): StoredItem(1, "object", "step", node=[{"int": 7}]),
    }


def _dumped() -> Any:
    return json.loads(b"".join(codec.dump(_metadata(), _items())))


def test_metadata_comes_back_as_it_was() -> None:
    expected = _metadata()
    expected.storage_data = _items()
    found = codec.load(b"".join(codec.dump(_metadata(), _items())), 2)
    assert found == expected
    assert [index.index for index in found.storage_data] == [0, 1, None]
    assert type(found.state_dict_metadata["w"].chunks[0].sizes) is torch.Size  # type: ignore[union-attr]


def test_metadata_of_planners_without_data() -> None:
    metadata = Metadata({}, planner_data=None)
    assert codec.load(b"".join(codec.dump(metadata, {})), 1) == Metadata({}, storage_data={})


@pytest.mark.parametrize("odd", [object(), {"x": np.zeros(3)}, torch.zeros(2)])
def test_planner_data_that_needs_pickle_is_refused(odd: object) -> None:
    with pytest.raises(UnsupportedError, match="planner"):
        list(codec.dump(Metadata({}, planner_data=odd), {}))


def _broken(change: Any) -> bytes:
    value = _dumped()
    change(value)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format_version=2),
        lambda v: v.pop("format_version"),
        lambda v: v.pop("state"),
        lambda v: v.update(items={}),
        lambda v: v.update(planner_data={"unknown": 1}),
        lambda v: v.update(planner_data=3),
        lambda v: v.update(storage_meta=[]),
        lambda v: v["storage_meta"].update(modules=[1]),
        lambda v: v["state"]["w"].update(dtype="Tensor"),
        lambda v: v["state"]["w"].update(dtype="int4"),
        lambda v: v["state"]["w"].update(layout="float32"),
        lambda v: v["state"]["w"].update(memory_format="load"),
        lambda v: v["state"]["w"].update(size=[4, -1]),
        lambda v: v["state"]["w"].update(size="4"),
        lambda v: v["state"]["w"]["chunks"].append([[0, 0], [5, 1]]),
        lambda v: v["state"]["w"]["chunks"].append([[0], [1]]),
        lambda v: v["state"]["w"]["chunks"].append([[0, 0]]),
        lambda v: v["state"].update(w=5),
        lambda v: v["items"].append([1]),
        lambda v: v["items"][0].__setitem__(3, 2),
        lambda v: v["items"][0].__setitem__(3, -1),
        lambda v: v["items"][0].__setitem__(4, "code"),
        lambda v: v["items"][0].__setitem__(6, 1.5),
        lambda v: v["items"][0].__setitem__(7, 1 << 70),
        lambda v: v["items"][0].__setitem__(1, [True]),
        lambda v: v["items"][2].__setitem__(8, {"int": 7}),
    ],
)
def test_broken_metadata_is_refused(change: Any) -> None:
    with pytest.raises(ManifestError):
        codec.load(_broken(change), 2)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\x80\x04."])
def test_what_is_no_metadata_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        codec.load(data, 2)
