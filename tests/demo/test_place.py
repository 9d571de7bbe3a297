from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from s3dlio.demo.place import choose_place
from s3dlio.engine.errors import ConfigError


@pytest.mark.parametrize("scheme", ["file", "direct"])
def test_a_local_run_gets_a_fresh_folder_below_the_uri(tmp_path: Path, scheme: str) -> None:
    place = choose_place(f"{scheme}://{tmp_path}/a/b", "now", Path("/nowhere"))
    assert place.store == f"{scheme}://{tmp_path}/a/b/run-now/checkpoints"
    assert place.folder == tmp_path / "a/b/run-now"
    assert place.folder.is_dir()
    assert not place.temporary


def test_without_a_uri_the_working_folder_is_used(tmp_path: Path) -> None:
    place = choose_place(None, "now", tmp_path)
    assert place.store == f"file://{tmp_path}/s3dlio-demo/run-now/checkpoints"


def test_an_object_store_gets_a_temporary_folder(tmp_path: Path) -> None:
    place = choose_place("s3://bucket/prefix/", "now", tmp_path)
    try:
        assert place.store == "s3://bucket/prefix/run-now"
        assert place.folder.is_dir()
        assert place.temporary
    finally:
        shutil.rmtree(place.folder)


@pytest.mark.parametrize("uri", ["folder", "/folder", "file://", "file://relative", "direct://relative"])
def test_no_absolute_uri_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError):
        choose_place(uri, "now", tmp_path)


def test_a_run_never_enters_an_existing_folder(tmp_path: Path) -> None:
    choose_place(f"file://{tmp_path}", "now", tmp_path)
    with pytest.raises(ConfigError, match=f"cannot make the demo's folder {tmp_path}/run-now: File exists"):
        choose_place(f"file://{tmp_path}", "now", tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Not a directory"):
        choose_place(f"file://{tmp_path}/file", "now", tmp_path)
