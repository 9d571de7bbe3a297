from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import s3dlio.manifest as manifest_module
from s3dlio.engine.errors import ManifestError
from s3dlio.fields import SIZE_MAX
from s3dlio.info import CheckpointInfo
from s3dlio.manifest import Manifest, is_newer_format
from s3dlio.records import CODECS, IndexRef, ShardRecord
from s3dlio.strategy import RANKS_MAX, Strategy, index_key, shard_key
from tests.store.fake import make_id, make_record

ID = make_id(7)
KEY = ID.manifest_key


def make(world: int = 2, **changes: Any) -> Manifest:
    manifest = Manifest(
        step=7,
        epoch=1,
        framework="torch",
        wall_time="2026-11-23T20:33:42+00:00",
        world_size=world,
        shards=tuple(make_record(ID, rank) for rank in range(world)),
        timestamp=ID.timestamp,
    )
    return replace(manifest, **changes)


def grouped(record: ShardRecord) -> ShardRecord:
    index = IndexRef(index_key(record.key), 100, "crc32c:00000001")
    return replace(record, codec="zstd-grouped", size=5, raw_size=70, index=index)


@st.composite
def records(draw: st.DrawFn, rank: int) -> ShardRecord:
    codec = draw(st.sampled_from(CODECS))
    key = shard_key(draw(st.sampled_from(Strategy)), ID, rank, codec)
    size = draw(st.integers(1, SIZE_MAX))
    checksums = st.from_regex("crc32c:[0-9a-f]{8}", fullmatch=True)
    index = IndexRef(index_key(key), draw(st.integers(1, 1 << 30)), draw(checksums))
    plain = codec in ("none", "zstd")
    return ShardRecord(
        rank=rank,
        key=key,
        size=size,
        step=7,
        epoch=1,
        timestamp=ID.timestamp,
        etag=draw(st.none() | st.text(max_size=20)),
        checksum=draw(checksums | st.none() if plain else checksums),
        raw_size=size if codec == "none" else draw(st.integers(0, min(SIZE_MAX, size << 20))),
        codec=codec,
        index=draw(st.sampled_from([None, index])) if plain else index,
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    world = draw(st.integers(1, 4))
    return make(
        world,
        framework=draw(st.text(max_size=10)),
        shards=tuple(draw(records(rank)) for rank in range(world)),
        user_meta=draw(
            st.none() | st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3)
        ),
        label=draw(st.sampled_from([None, "job-1"])),
    )


@settings(max_examples=40)
@given(manifests())
def test_a_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    data = manifest.encode()
    assert {**manifest.to_dict(), "checksum": json.loads(data)["checksum"]} == json.loads(data)
    assert Manifest.decode(data, KEY) == manifest
    assert Manifest.from_dict(manifest.to_dict()) == replace(manifest, timestamp="")


@given(records(0))
def test_a_record_comes_back_as_it_was(record: ShardRecord) -> None:
    record = replace(record, label="job-1")
    assert ShardRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@settings(max_examples=40)
@given(manifests(), st.data())
def test_a_truncated_manifest_is_named(manifest: Manifest, data: st.DataObject) -> None:
    whole = manifest.encode().rstrip()
    with pytest.raises(ManifestError, match=KEY):
        Manifest.decode(whole[: data.draw(st.integers(0, len(whole) - 1))], KEY)


@settings(max_examples=40)
@given(manifests(), st.data())
def test_a_flipped_bit_is_told_or_in_the_checksums_own_words(manifest: Manifest, data: st.DataObject) -> None:
    """Where the checksum is not one any more nothing else can have changed."""
    whole = bytearray(manifest.encode())
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    try:
        assert Manifest.decode(bytes(whole), KEY) == manifest
    except ManifestError as error:
        assert KEY in str(error)  # noqa: PT017 - the other outcome is no error
    else:
        assert bit // 8 >= len(whole) - 40
    assert not is_newer_format(bytes(whole))


def test_a_manifest_without_a_checksum_is_read() -> None:
    """The published package writes none, and a tool that indents anew may lose it."""
    assert Manifest.decode(json.dumps(make().to_dict()).encode(), KEY) == make()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(st.data(), json_values)
def test_any_value_in_any_field_gives_a_manifest_or_our_error(data: st.DataObject, value: Any) -> None:
    found = make(shards=(make_record(ID, 0), grouped(make_record(ID, 1)))).to_dict()
    places: list[Any] = [found, found["shards"][0], found["shards"][1], found["shards"][1]["index"], found["shards"]]
    place = data.draw(st.sampled_from(places))
    name = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0, 1]))
    place[name] = value
    try:
        manifest = Manifest.from_dict(found, KEY)
    except ManifestError:
        return
    assert Manifest.from_dict(manifest.to_dict(), KEY) == manifest


def broken(**changes: Any) -> dict[str, Any]:
    return {**make().to_dict(), **changes}


def broken_shard(**changes: Any) -> dict[str, Any]:
    found = make().to_dict()
    found["shards"][1].update(changes)
    return found


GROUPED = {"codec": "zstd-grouped", "raw_size": 10}
INDEX = {"key": index_key(make_record(ID, 1).key), "size": 1, "checksum": "crc32c:00000000"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "must be an object"),
        (None, "must be an object"),
        (broken(format_version=3), "upgrade s3dlio"),
        (broken(format_version=0), "format_version"),
        (broken(format_version="1"), "format_version"),
        (broken(format_version=True), "format_version"),
        (broken(global_step=-1), "global_step"),
        (broken(global_step=8), "not that of its key"),
        (broken(global_step=7.0), "global_step"),
        (broken(epoch=None), "epoch"),
        (broken(world_size=0), "world_size"),
        (broken(world_size=10**18), "world_size"),
        (broken(world_size=RANKS_MAX + 1), "world_size"),
        (broken(world_size=3), "1 of 3 ranks are missing: 2"),
        (broken(world_size=1), "2 shards in a world of 1"),
        (broken(status=None), "status"),
        (broken(framework="x" * 300), "framework"),
        (broken(wall_time=5), "wall_time"),
        (broken(shards={}), "shards must be a list"),
        (broken(shards=[1]), "shard 0 must be an object"),
        (broken(shards=None), "shards must be a list"),
        (broken_shard(rank=0), "rank 0"),
        (broken_shard(rank=2), "rank 2"),
        (broken_shard(rank=-1), "rank"),
        (broken_shard(key="../../etc/passwd"), "not a key"),
        (broken_shard(key="/etc/passwd"), "not a key"),
        (broken_shard(key="shards/../../x"), "not a key"),
        (broken_shard(key="manifests/latest.json"), "below shards/"),
        (broken_shard(key="shards/" + "x" * 2000), "characters"),
        (broken_shard(key=make_record(ID, 0).key), "rank 1"),
        (broken_shard(key=make_record(make_id(9), 1).key), "step 7"),
        (broken_shard(key=INDEX["key"]), "rank 1"),
        (broken_shard(size=-1), "size"),
        (broken_shard(size=2**63), "size"),
        (broken_shard(size="7"), "size"),
        (broken_shard(raw_size=8), "cannot hold"),
        (broken_shard(checksum="crc32c:nothexxx"), "malformed"),
        (broken_shard(checksum="sha256:00000000"), "malformed"),
        (broken_shard(codec="lz4"), "unknown codec"),
        (broken_shard(codec="zstd"), "contradicts the key"),
        (broken_shard(**GROUPED), "needs raw_size, checksum and index"),
        (broken_shard(**GROUPED, index={**INDEX, "key": "shards/x"}), "beside the shard"),
        (broken_shard(**GROUPED, index={**INDEX, "key": "../x"}), "not a key"),
        (broken_shard(**GROUPED, index={**INDEX, "size": 1 << 40}), "size"),
        (broken_shard(**GROUPED, index={**INDEX, "checksum": None}), "checksum is missing"),
        (broken_shard(**GROUPED, index=[]), "must be an object"),
        (broken_shard(**GROUPED, index=INDEX), "says format 1"),
        (broken_shard(codec="zstd-grouped", raw_size=1 << 50, index=INDEX), "cannot hold"),
        (broken_shard(etag=5), "etag"),
        (broken(label=5), "label"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_manifest_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason) as caught:
        Manifest.decode(json.dumps(value).encode(), KEY)
    assert KEY in str(caught.value)


def test_a_manifest_under_another_name_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"manifests/latest\.json"):
        Manifest.decode(make().encode(), "manifests/latest.json")


def test_a_manifest_beyond_the_limit_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MANIFEST_MAX", 1000)
    with pytest.raises(ManifestError, match="more than a manifest can be"):
        Manifest.decode(b" " * 1001, KEY)
    with pytest.raises(ManifestError, match="more than 1000"):
        make(user_meta="x" * 1000).encode()


def test_the_version_says_who_can_read_it() -> None:
    zstd = replace(make_record(ID, codec="zstd"), raw_size=99)
    assert make(1, shards=(zstd,)).format_version == 1
    assert make(1, shards=(grouped(make_record(ID)),)).format_version == 2


def test_a_newer_format_is_told_from_damage() -> None:
    assert is_newer_format(b'{"format_version": 3}')
    for data in (b'{"format_version": 2}', b"{", b"[]", b'{"format_version": "3"}'):
        assert not is_newer_format(data)


def test_unknown_fields_are_left_alone() -> None:
    assert Manifest.from_dict({**make().to_dict(), "colour": 1}, KEY) == make()


def test_a_foreign_status_may_miss_ranks_but_is_not_complete() -> None:
    manifest = make(3, status="partial", shards=(make_record(ID, 1),))
    read = Manifest.decode(manifest.encode(), KEY)
    assert read.shards == manifest.shards
    assert not read.is_complete


@pytest.mark.parametrize(
    ("key", "codec", "raw_size"),
    [
        ("shards/ckpt-7-20261123-203342/rank-0.bin", "none", 29),
        ("shards/ckpt-7-20261123-203342/rank-0.bin.zst", "zstd", None),
    ],
)
def test_a_record_of_the_published_package_is_read(key: str, codec: str, raw_size: int | None) -> None:
    record = ShardRecord.from_dict(
        {"step": 7, "timestamp": "20261123-203342", "rank": 0, "key": key, "size": 29, "etag": "e", "checksum": None}
    )
    assert (record.codec, record.raw_size, record.epoch, record.index) == (codec, raw_size, 0, None)


def test_a_record_must_agree_with_its_key() -> None:
    with pytest.raises(ManifestError, match="its key"):
        ShardRecord.from_dict({**make_record(ID).to_dict(), "timestamp": "20261123-203342"})


def test_many_ranks_are_one_line_each() -> None:
    manifest = make(16384)
    data = manifest.encode()
    assert len(data.splitlines()) == 16384 + 14
    assert Manifest.decode(data, KEY) == manifest


def test_an_info_tells_what_the_manifest_holds() -> None:
    info = CheckpointInfo.of(make(2, user_meta={"loss": 1.5}, label="job-1"))
    assert (info.id, info.manifest_key, info.label) == (ID.name, KEY, "job-1")
    assert (info.total_size, info.raw_size, info.world_size) == (14, 14, 2)
    assert info.size_mb == pytest.approx(14 / 2**20)
    assert info.size_gb == pytest.approx(14 / 2**30)
    assert info.is_complete
    assert not info.is_single_rank


def test_an_unknown_raw_size_stays_unknown() -> None:
    foreign = replace(make_record(ID, codec="zstd"), raw_size=None)
    assert make(2, shards=(foreign, make_record(ID, 1))).raw_size is None
