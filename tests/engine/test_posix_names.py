from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine.backends.posix_names import (
    UploadName,
    beside,
    check_name,
    is_hidden,
    lock_of,
    new_token,
    parse_upload,
    upload_of,
)
from s3dlio.engine.errors import ConfigError

names = st.text(min_size=1).filter(lambda name: "/" not in name and name not in (".", ".."))


@given(name=names, now=st.integers(0, 2**64 - 1), chance=st.binary(min_size=4, max_size=4), inode=st.integers(0, 2**64))
def test_an_upload_is_found_by_its_file(name: str, now: int, chance: bytes, inode: int) -> None:
    token = new_token(now, chance)
    filename = beside(f"/folder/{name}", token).removeprefix("/folder/")
    upload = UploadName(token, now, inode)
    assert upload_of(filename, inode) == (name, upload)
    assert parse_upload(str(upload)) == upload
    assert is_hidden(filename)
    assert is_hidden(lock_of(f"/folder/{name}").removeprefix("/folder/"))


@pytest.mark.parametrize("upload", ["", "x", "../../etc", "0123456789abcdef-01234567", "0123456789abcdef-01234567-/x"])
def test_what_is_no_upload_is_told(upload: str) -> None:
    assert parse_upload(upload) is None


@pytest.mark.parametrize(
    "name", [".hidden", ".x.part", ".x.0123456789abcdef-01234567.part.gz", "x.s3dlio-lock", "x.part"]
)
def test_other_names_are_objects(name: str) -> None:
    assert not is_hidden(name)
    assert upload_of(name, 1) is None
    check_name(f"folder/{name}")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (".x.0123456789abcdef-01234567.part", "unfinished upload"),
        ("a/.x.s3dlio-lock", "unfinished upload or a lock"),
        ("a/.x.s3dlio-lock/b", "unfinished upload or a lock"),
        ("a/" + "n" * 224, "more than 223 bytes"),
        ("é" * 112, "more than 223 bytes"),
        ("a\ud800b", "no text"),
    ],
)
def test_names_that_no_object_can_have(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_name(key)


def test_the_longest_name_leaves_room_for_its_upload() -> None:
    check_name("n" * 223)
    assert len(beside("/" + "n" * 223, new_token(1, b"1234"))) == 1 + 255
