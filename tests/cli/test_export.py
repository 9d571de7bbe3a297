from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from s3dlio.cli.export import PIECE
from tests.cli.conftest import Call
from tests.cli.fakes import FakeStore

URI = "file:///ckpt"
STATE: dict[str, Any] = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, dtype=np.int64)}


def test_the_file_is_the_shard(call: Call, tmp_path: Path) -> None:
    store = FakeStore(100, payload=save(STATE))
    file = tmp_path / "state.safetensors"
    answer = call(store, "export", URI, "100", str(file))
    assert answer.code == 0
    assert answer.err == ""
    assert answer.out.startswith(f"{file}: step 100, rank 0, ")
    loaded = load_file(file)
    assert all(np.array_equal(loaded[name], value) for name, value in STATE.items())
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_json_and_a_payload_of_several_pieces(call: Call, tmp_path: Path) -> None:
    payload = save({"a": np.arange(PIECE + 5, dtype=np.uint8)})
    file = tmp_path / "state.safetensors"
    answer = call(FakeStore(100, payload=payload), "export", URI, "100", str(file), "--json")
    assert json.loads(answer.out) == {"uri": URI, "step": 100, "rank": 0, "file": str(file), "bytes": len(payload)}
    assert file.read_bytes() == payload


def test_several_ranks_need_a_choice(call: Call, tmp_path: Path) -> None:
    store = FakeStore(100, world_size=4, payload=save(STATE))
    file = str(tmp_path / "state.safetensors")
    answer = call(store, "export", URI, "100", file)
    assert answer.code == 1
    assert "4 ranks: add --rank 0..3" in answer.err
    assert "no rank 4" in call(store, "export", URI, "100", file, "--rank", "4").err
    assert store.read == []
    assert call(store, "export", URI, "100", file, "--rank", "3").code == 0
    assert store.read == [(100, 3)]


def test_an_existing_file_stays_without_force(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    file.write_text("mine")
    store = FakeStore(100, payload=save(STATE))
    answer = call(store, "export", URI, "100", str(file))
    assert answer.code == 1
    assert "exists" in answer.err
    assert file.read_text() == "mine"
    assert store.read == []
    assert call(store, "export", URI, "100", str(file), "--force").code == 0
    assert set(load_file(file)) == set(STATE)


@pytest.mark.parametrize(("name", "words"), [("absent/a.safetensors", "there is no folder"), ("", "it is a folder")])
def test_a_place_that_takes_no_file_is_told_before_anything_is_read(
    call: Call, tmp_path: Path, name: str, words: str
) -> None:
    store = FakeStore(100, payload=save(STATE))
    answer = call(store, "export", URI, "100", str(tmp_path / name), "--force")
    assert answer.code == 1
    assert words in answer.err
    assert store.read == []


def lying_header(length: int) -> bytes:
    return length.to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x02",
        b"plain payload of some length",
        lying_header(3),
        lying_header(2**63),
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x02\0\0\0\0\0\0\0{]",
        b"\x02\0\0\0\0\0\0\0\xff\xfe",
    ],
)
def test_a_payload_that_is_no_state_is_refused(call: Call, tmp_path: Path, payload: bytes) -> None:
    answer = call(FakeStore(100, payload=payload), "export", URI, "100", str(tmp_path / "a.safetensors"))
    assert answer.code == 1
    assert "step 100 holds no safetensors state" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    answer = call(FakeStore(100, payload=save(STATE)), "export", URI, "100", str(tmp_path / "a.safetensors"))
    assert answer.code == 1
    assert answer.err == "s3dlio: error: [Errno 28] No space left on device\n"
    assert list(tmp_path.iterdir()) == []
