"""Manifests, indexes and pointers that somebody wrote to mislead, or that a crash or another program left behind.

They are refused by name before a byte beyond them is read or set aside; other checkpoints load, and nothing outside the
store's folder is touched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3dlio import CheckpointStore
from s3dlio.engine.checksum import crc32c, format_crc32c
from s3dlio.engine.errors import CheckpointNotFoundError, CorruptError, ManifestError, MemoryLimitError
from tests.faults import states
from tests.faults.conftest import Open
from tests.faults.folders import contents, only

OLD = states.make(1)
Json = dict[str, Any]
Edit = Callable[[Json], Any]


def of_shard(**changes: Any) -> Edit:
    return lambda manifest: manifest["shards"][0].update(changes)


def of_index(**changes: Any) -> Edit:
    return lambda manifest: manifest["shards"][0]["index"].update(changes)


def of(**changes: Any) -> Edit:
    return lambda manifest: manifest.update(changes)


KEYS = [
    "../outside.bin",
    "../../outside.bin",
    "/etc/passwd",
    "shards/../../outside.bin",
    "shards/./rank-0.bin",
    "shards//rank-0.bin",
    "shards/",
    "shards\\..\\outside.bin",
    "manifests/latest.json",
    "outside.bin",
    "shards/a\0b",
    "shards/" + "x" * 5000,
    "",
    None,
    7,
    ["shards/rank-0.bin"],
]
SIZES: list[Any] = [-1, 2**63, 2**70, 1.5, "12", True, None, [], 1e300]
CHECKSUMS = ["crc32c:xyz", "crc32c:123", "md5:00000000", "", 12, "crc32c:" + "0" * 9000]
LISTS: list[Any] = [[], {}, None, "x", [None], [[]], [7]]
EDITS: dict[str, Edit] = {
    **{f"key {key!r:.40}": of_shard(key=key) for key in KEYS},
    **{f"index key {key!r:.40}": of_index(key=key) for key in KEYS},
    **{f"size {size!r}": of_shard(size=size, raw_size=size) for size in SIZES},
    **{f"index size {size!r}": of_index(size=size) for size in (-1, 0, 2**31, 2**70, "1", None)},
    **{f"rank {rank!r}": of_shard(rank=rank) for rank in (-1, 1, 2**40, "0", None, True)},
    **{f"world {world!r}": of(world_size=world) for world in (0, -1, 2, 2**40, "1", None)},
    **{f"checksum {value!r}": of_shard(checksum=value) for value in CHECKSUMS},
    **{f"codec {value!r}": of_shard(codec=value) for value in ("lzma", "zstd", "", 3)},
    **{f"shards {value!r}": of(shards=value) for value in LISTS},
    **{f"version {value!r}": of(format_version=value) for value in (0, -1, "2", None, True, 1.0)},
    **{f"step {value!r}": of(global_step=value) for value in (1, 3, -2, "2", None)},
    "grouped without a size": of_shard(codec="zstd-grouped", raw_size=None),
    "a bomb": of_shard(codec="zstd-grouped", raw_size=2**62),
    "the same rank twice": lambda manifest: manifest["shards"].append(manifest["shards"][0]),
    "10,000 shards": lambda manifest: manifest.update(shards=[manifest["shards"][0]] * 10_000),
    "no shards": lambda manifest: manifest.pop("shards"),
    "no step": lambda manifest: manifest.pop("global_step"),
}


@pytest.fixture
def store(open_store: Open) -> CheckpointStore:
    """Steps 1 and 2, of which 2 is to be forged."""
    made: CheckpointStore = open_store(workers=1)
    made.save(1, OLD)
    made.save(2, states.make(2))
    return made


@pytest.fixture
def forged(store: CheckpointStore, folder: Path) -> Path:
    """The manifest of step 2; beside the store lies what it may try to reach."""
    for path in (folder.parent / "outside.bin", folder / "outside.bin"):
        path.write_text("precious")
    return only(folder, "manifests/ckpt-2-*.json")


def rewrite(path: Path, edit: Edit) -> None:
    """Edit a manifest; without the form of ours it bears no checksum of itself."""
    value = json.loads(path.read_text())
    del value["checksum"]
    edit(value)
    path.write_text(json.dumps(value))


def check_refused(store: CheckpointStore, forged: Path, folder: Path, text: str = "") -> None:
    before = contents(folder.parent)
    asks: list[Callable[[], object]] = [
        store.load,
        lambda: store.load(2),
        lambda: store.load(names="*"),
        lambda: store.load(into=states.zeroed(states.make(2))),
        lambda: store.verify(2),
        store.read_shard,
        store.latest,
    ]
    for ask in asks:
        with pytest.raises(ManifestError, match=forged.name) as raised:
            ask()
        assert text in str(raised.value)
        assert len(str(raised.value)) < 2000
    assert states.same(store.load(1), OLD)
    assert [info.status for info in store.list()] == ["complete", "unreadable"]
    assert store.prune(keep_last=1) == 0
    assert contents(folder.parent) == before


@pytest.mark.parametrize("name", EDITS)
def test_a_forged_manifest(store: CheckpointStore, forged: Path, folder: Path, name: str) -> None:
    rewrite(forged, EDITS[name])
    check_refused(store, forged, folder)


TEXTS = {
    "nothing": b"",
    "no JSON": b"\x7fELF" + bytes(100),
    "not UTF-8": b'{"format_version": 1, "framework": "\xff\xfe"}',
    "null": b"null",
    "a list": b"[]",
    "a number": b"1" * 5000,
    "deep": b"[" * 200_000,
    "deep in a field": b'{"format_version": 1, "user_meta": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "NaN": b'{"format_version": NaN}',
    "two values": b"{}{}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_manifest_that_is_none(store: CheckpointStore, forged: Path, folder: Path, name: str) -> None:
    forged.write_bytes(TEXTS[name])
    check_refused(store, forged, folder)


def test_a_manifest_of_a_terabyte(store: CheckpointStore, forged: Path) -> None:
    """Refused by its size: not a byte of it is read. (Its file is a hole.)"""
    with forged.open("r+b") as file:
        file.truncate(1 << 40)
    for ask in (store.load, store.latest, lambda: store.verify(2)):
        with pytest.raises(ManifestError, match=f"{forged.name} is larger than a manifest can be"):
            ask()
    assert states.same(store.load(1), OLD)


def test_a_newer_format(store: CheckpointStore, forged: Path, folder: Path) -> None:
    """Refused with the way out; neither deleted nor pruned, nor skipped for an older one."""
    rewrite(forged, of(format_version=3))
    check_refused(store, forged, folder, "upgrade s3dlio")
    before = contents(folder)
    with pytest.raises(ManifestError, match="upgrade s3dlio"):
        store.delete(2)
    assert contents(folder) == before


def test_a_manifest_that_lists_anothers_shard(store: CheckpointStore, forged: Path, folder: Path) -> None:
    """Refused, and deleting it takes nothing of the other checkpoint with it."""
    other = json.loads(only(folder, "manifests/ckpt-1-*.json").read_text())["shards"][0]
    rewrite(forged, of(shards=[other]))
    check_refused(store, forged, folder)
    assert store.delete(2)
    assert states.same(store.load(), OLD)
    assert store.verify().ok


def test_another_status_is_no_checkpoint(store: CheckpointStore, forged: Path) -> None:
    rewrite(forged, of(status="partial"))
    assert states.same(store.load(), OLD)
    with pytest.raises(CheckpointNotFoundError, match="step 2"):
        store.load(2)
    assert [info.status for info in store.list()] == ["complete", "partial"]


def forge_index(folder: Path, forged: Path, edit: Edit, **shard: Any) -> None:
    """Edit the index and make the manifest vouch for it, as only somebody can who writes both."""
    path = only(folder, "shards/ckpt-2-*/rank-0.idx")
    value = json.loads(path.read_bytes())
    edit(value)
    data = json.dumps(value).encode()
    path.write_bytes(data)

    def vouch(manifest: Json) -> None:
        of_index(size=len(data), checksum=format_crc32c(crc32c(data)))(manifest)
        of_shard(**shard)(manifest)

    rewrite(forged, vouch)


TREES: dict[str, Edit] = {
    "a leaf that is none": lambda index: index.update(tree=99),
    "an unknown node": lambda index: index.update(tree={"pickle": "gASVAA=="}),
    "a dict of a number": lambda index: index.update(tree={"dict": 5}),
}
INDEXES: dict[str, Edit] = {
    **TREES,
    "no chunks": lambda index: index.pop("chunks"),
    "chunks of nothing": lambda index: index["chunks"].update(raw=[], stored=[], crc32c=""),
    "a chunk of 2^60 bytes": lambda index: index["chunks"]["raw"].__setitem__(0, 2**60),
    "a chunk of -1 bytes": lambda index: index["chunks"]["raw"].__setitem__(0, -1),
    "chunks that overlap": lambda index: index["chunks"]["stored"].__setitem__(0, index["chunks"]["stored"][0] + 1),
    "a checksum too few": lambda index: index["chunks"].update(crc32c=index["chunks"]["crc32c"][8:]),
    "an unknown codec": lambda index: index["chunks"].update(codec="lzma"),
    "another size": lambda index: index.update(size=1),
    "a newer format": lambda index: index.update(format_version=99),
    "a table of words": lambda index: index.update(table="words"),
    "an offset outside": lambda index: index["table"]["offsets"].__setitem__(0, 2**40),
    "an offset before": lambda index: index["table"]["offsets"].__setitem__(0, -8),
    "a shape too large": lambda index: index["table"]["specs"].__setitem__(0, ["numpy", "float32", [2**62, 2**62]]),
    "a negative shape": lambda index: index["table"]["specs"].__setitem__(0, ["numpy", "float32", [-1]]),
    "a dtype of objects": lambda index: index["table"]["specs"].__setitem__(0, ["numpy", "object", [8]]),
    "an unknown framework": lambda index: index["table"]["specs"].__setitem__(0, ["os", "system", [1]]),
    "a name twice": lambda index: index["table"]["names"].__setitem__(0, "model.half"),
    "a spec outside": lambda index: index["table"]["spec"].__setitem__(0, 9),
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_forged_index(store: CheckpointStore, forged: Path, folder: Path, name: str) -> None:
    """Refused by name; ``names=`` does not look at the tree, and ``into=`` may find first that it does not fit."""
    forge_index(folder, forged, INDEXES[name])
    asks: list[Callable[[], object]] = [store.load]
    if name not in TREES:
        asks += [lambda: store.load(names="*"), lambda: store.load(into=states.zeroed(states.make(2)))]
    for ask in asks:
        with pytest.raises(CorruptError, match=r"ckpt-2-.*rank-0\.idx"):
            ask()
    assert states.same(store.load(1), OLD)


def test_more_memory_than_there_is(open_store: Open, folder: Path) -> None:
    """A size that a codec could reach is believed, but not taken before it is there."""
    with open_store(workers=1, compression="zstd-grouped") as store:
        store.save(2, bytes(1 << 20))
        raw = 1 << 36

        def inflate(index: Json) -> None:
            index.update(raw_size=raw)
            index["chunks"].update(raw=[raw])

        forge_index(folder, only(folder, "manifests/ckpt-2-*.json"), inflate, raw_size=raw)
        with pytest.raises((CorruptError, MemoryLimitError)):
            store.load()


POINTERS: dict[str, bytes | None] = {
    "torn": b'{"manifest_key": "manif',
    "empty": b"",
    "gone": None,
    "dangling": b'{"manifest_key": "manifests/ckpt-9-20991231T000000.000000Z-00000000.json", "global_step": 9}',
    "hostile": b'{"manifest_key": "../../outside.bin", "global_step": -1, "ts": "x"}',
    "stale": b"stale",
    "huge": bytes(1 << 20),
}


@pytest.mark.parametrize("which", ["manifests/latest.json", "latest.json"])
@pytest.mark.parametrize("name", POINTERS)
def test_a_bad_pointer(store: CheckpointStore, forged: Path, folder: Path, name: str, which: str) -> None:
    """The manifests are the truth; the next save repairs the hint."""
    pointer, data = folder / which, POINTERS[name]
    if data is None:
        pointer.unlink()
    elif name == "stale":
        key = f"manifests/{only(folder, 'manifests/ckpt-1-*.json').name}"
        pointer.write_text(json.dumps({"manifest_key": key, "global_step": 1, "ts": ""}))
    else:
        pointer.write_bytes(data)
    assert states.same(store.load(), states.make(2))
    latest = store.latest()
    assert latest is not None
    assert latest.step == 2
    info = store.save(3, OLD)
    assert json.loads(pointer.read_text())["manifest_key"] == info.manifest_key
    assert states.same(store.load(), OLD)
    store.delete(3)
    assert json.loads(pointer.read_text())["manifest_key"] == f"manifests/{forged.name}"
    assert (folder / "outside.bin").read_text() == "precious"
