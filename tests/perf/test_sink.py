"""The benchmark sink: its end, its label, its memory, and S3 as the real SDK speaks it."""

from __future__ import annotations

import base64
import subprocess
import sys

import psutil
import pytest
from botocore.exceptions import ClientError

from perf.sink import Sink, running_sink
from tests.perf.sinks import BUCKET, MIB, s3
from tests.servers.ends import await_end

BODY = bytes(range(256)) * 1024
CHECKED = b"123456789"
RIGHT = base64.b64encode((0xAE8B14860A799888).to_bytes(8, "big")).decode()  # the algorithm's check value
WRONG = base64.b64encode(bytes(8)).decode()


def code(caught: pytest.ExceptionInfo[ClientError]) -> str:
    found: str = caught.value.response["Error"]["Code"]
    return found


def test_s3_multipart_comes_back(store_sink: Sink, folder: str) -> None:
    key = f"{folder}/shard"
    parts = [bytes([number]) * (MIB + number) for number in (1, 2, 3)]
    with s3(store_sink) as client:
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        tags = []
        for number in (3, 1, 2):
            sent = client.upload_part(
                Bucket=BUCKET,
                Key=key,
                UploadId=upload,
                PartNumber=number,
                Body=parts[number - 1],
                ChecksumCRC64NVME="AAA=",
            )
            assert sent["ChecksumCRC64NVME"] == "AAA="
            tags.append({"PartNumber": number, "ETag": sent["ETag"]})
        open_uploads = client.list_multipart_uploads(Bucket=BUCKET, Prefix=folder)["Uploads"]
        assert [(found["Key"], found["UploadId"]) for found in open_uploads] == [(key, upload)]
        assert "Contents" not in client.list_objects_v2(Bucket=BUCKET, Prefix=folder)
        done = client.complete_multipart_upload(
            Bucket=BUCKET,
            Key=key,
            UploadId=upload,
            MultipartUpload={"Parts": sorted(tags, key=lambda tag: int(str(tag["PartNumber"])))},
            ChecksumCRC64NVME="BBB=",
            ChecksumType="FULL_OBJECT",
        )
        assert (done["ChecksumCRC64NVME"], done["ChecksumType"]) == ("BBB=", "FULL_OBJECT")
        whole = b"".join(parts)
        assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == whole
        middle = client.get_object(Bucket=BUCKET, Key=key, Range=f"bytes={MIB - 5}-{2 * MIB + 9}", IfMatch=done["ETag"])
        assert middle["Body"].read() == whole[MIB - 5 : 2 * MIB + 10]
        head = client.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
        assert (head["ContentLength"], head["ETag"], head["ChecksumCRC64NVME"]) == (len(whole), done["ETag"], "BBB=")
        with pytest.raises(ClientError) as caught:
            client.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": tags})
        assert code(caught) == "NoSuchUpload"


def test_s3_put_keeps_its_conditions(store_sink: Sink, folder: str) -> None:
    key = f"{folder}/latest.json"
    with s3(store_sink) as client:
        first = client.put_object(Bucket=BUCKET, Key=key, Body=b"1", IfNoneMatch="*")
        with pytest.raises(ClientError) as caught:
            client.put_object(Bucket=BUCKET, Key=key, Body=b"2", IfNoneMatch="*")
        assert code(caught) == "PreconditionFailed"
        client.put_object(Bucket=BUCKET, Key=key, Body=b"3", IfMatch=first["ETag"], Metadata={"nonce": "n"})
        with pytest.raises(ClientError) as caught:
            client.put_object(Bucket=BUCKET, Key=key, Body=b"4", IfMatch=first["ETag"])
        assert code(caught) == "PreconditionFailed"
        with pytest.raises(ClientError) as caught:
            client.get_object(Bucket=BUCKET, Key=key, IfMatch=first["ETag"])
        assert code(caught) == "PreconditionFailed"
        found = client.get_object(Bucket=BUCKET, Key=key)
        assert (found["Body"].read(), found["Metadata"]) == (b"3", {"nonce": "n"})


def test_s3_compares_the_checksums_of_small_bodies(store_sink: Sink, folder: str) -> None:
    at = {"Bucket": BUCKET, "Key": f"{folder}/probe"}
    with s3(store_sink) as client:
        for checksum in (WRONG, "nonsense"):
            with pytest.raises(ClientError) as caught:
                client.put_object(**at, Body=CHECKED, ChecksumCRC64NVME=checksum)
            assert code(caught) == "BadDigest"
        assert client.put_object(**at, Body=CHECKED, ChecksumCRC64NVME=RIGHT)["ChecksumCRC64NVME"] == RIGHT
        upload = client.create_multipart_upload(**at, ChecksumAlgorithm="CRC64NVME")["UploadId"]
        part = {**at, "UploadId": upload, "PartNumber": 1, "Body": CHECKED}
        with pytest.raises(ClientError) as caught:
            client.upload_part(**part, ChecksumCRC64NVME=WRONG)
        assert code(caught) == "BadDigest"
        tag = client.upload_part(**part, ChecksumCRC64NVME=RIGHT)["ETag"]
        (listed,) = client.list_parts(**at, UploadId=upload)["Parts"]
        assert (listed["PartNumber"], listed["Size"], listed["ETag"]) == (1, len(CHECKED), tag)
        whole = {**at, "UploadId": upload, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": tag}]}}
        with pytest.raises(ClientError) as caught:
            client.complete_multipart_upload(**whole, ChecksumCRC64NVME=WRONG)
        assert code(caught) == "BadDigest"
        assert client.complete_multipart_upload(**whole, ChecksumCRC64NVME=RIGHT)["ChecksumCRC64NVME"] == RIGHT


def test_s3_lists_in_pages_and_deletes(store_sink: Sink, folder: str) -> None:
    names = [f"{folder}/{name}" for name in ("a&b", "b", "c/d", "ü", "z z+%")]
    with s3(store_sink) as client:
        client.head_bucket(Bucket=BUCKET)
        for name in names:
            client.put_object(Bucket=BUCKET, Key=name, Body=b"x" * 10)
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=f"{folder}/", PaginationConfig={"PageSize": 2}
        )
        found = [entry for page in pages for entry in page["Contents"]]
        assert [entry["Key"] for entry in found] == sorted(names)
        assert {entry["Size"] for entry in found} == {10}
        assert found[0]["ETag"] == client.head_object(Bucket=BUCKET, Key=names[0])["ETag"]
        for name in names:
            client.delete_object(Bucket=BUCKET, Key=name)
        with pytest.raises(ClientError) as caught:
            client.get_object(Bucket=BUCKET, Key=names[0])
        assert code(caught) == "NoSuchKey"
        client.delete_object(Bucket=BUCKET, Key=names[0])


def test_s3_says_what_is_wrong(store_sink: Sink, folder: str) -> None:
    key = f"{folder}/key"
    with s3(store_sink) as client:
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        with pytest.raises(ClientError) as caught:
            client.complete_multipart_upload(
                Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": "x"}]}
            )
        assert code(caught) == "InvalidPart"
        client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)
        with pytest.raises(ClientError) as caught:
            client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)
        assert code(caught) == "NoSuchUpload"
        with pytest.raises(ClientError) as caught:
            client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
        assert code(caught) == "NoSuchUpload"
        client.put_object(Bucket=BUCKET, Key=key, Body=b"")
        with pytest.raises(ClientError) as caught:
            client.get_object(Bucket=BUCKET, Key=key, Range="bytes=0-9")
        assert code(caught) == "InvalidRange"
        assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b""
        with pytest.raises(ClientError) as caught:
            client.get_bucket_acl(Bucket=BUCKET)
        assert code(caught) == "NotImplemented"


def test_discard_remembers_sizes_and_small_objects(discard_sink: Sink, folder: str) -> None:
    with s3(discard_sink) as client:
        client.put_object(Bucket=BUCKET, Key=f"{folder}/small", Body=BODY)
        client.put_object(Bucket=BUCKET, Key=f"{folder}/large", Body=bytes(3 * MIB))
        assert client.get_object(Bucket=BUCKET, Key=f"{folder}/small")["Body"].read() == BODY
        assert client.get_object(Bucket=BUCKET, Key=f"{folder}/large")["Body"].read() == b"\x5a" * (3 * MIB)
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix=folder)["Contents"]
        assert [entry["Size"] for entry in listed] == [3 * MIB, len(BODY)]
        assert client.head_object(Bucket=BUCKET, Key="never stored")["ContentLength"] == 40 * MIB
        # across the end of the pattern
        found = client.get_object(Bucket=BUCKET, Key="never stored", Range=f"bytes={15 * MIB}-{33 * MIB}")
        assert found["Body"].read() == b"\x5a" * (18 * MIB + 1)


def test_a_far_sink_is_labelled_and_answers(folder: str) -> None:
    with running_sink("store", latency_ms=1, mbps=200) as sink:
        assert sink.label == "sink (store, 1 ms, 200 MB/s a connection)"
        with s3(sink) as client:
            client.put_object(Bucket=BUCKET, Key=folder, Body=BODY)
            assert client.get_object(Bucket=BUCKET, Key=folder)["Body"].read() == BODY


def test_a_sink_takes_no_chunks(store_sink: Sink, folder: str) -> None:
    with s3(store_sink) as client, pytest.raises(ClientError) as caught:
        client.put_object(Bucket=BUCKET, Key=folder, Body=b"x", ContentEncoding="aws-chunked")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501


def test_a_sink_ends_with_its_context() -> None:
    with running_sink("discard") as sink:
        process = psutil.Process(sink.pid)
        assert {connection.laddr.ip for connection in process.net_connections("inet")} == {"127.0.0.1"}
    assert not process.is_running()


def test_a_sink_ends_with_who_started_it() -> None:
    code = (
        "import os\nfrom perf.sink import running_sink\nwith running_sink() as s: print(s.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    await_end(int(done.stdout))


def test_a_sink_that_cannot_start_says_so() -> None:
    with pytest.raises(RuntimeError, match="the sink did not start"), running_sink("never"):
        pass


def test_memory_is_used_again_once_no_reply_is_made_of_it(folder: str) -> None:
    first, second = (bytes([number]) * (2 * MIB) for number in (1, 2))
    with running_sink("store") as sink, s3(sink) as slow, s3(sink) as client:
        process = psutil.Process(sink.pid)

        def write(body: bytes) -> int:
            client.put_object(Bucket=BUCKET, Key=folder, Body=body)
            return process.num_fds()

        before = write(first)
        reading = slow.get_object(Bucket=BUCKET, Key=folder)["Body"]
        assert write(second) > before  # the reply, of which all may be on its way, keeps the first memory
        assert reading.read() == first
        slow.head_object(Bucket=BUCKET, Key=folder)
        most = process.num_fds()
        for body in (first, second, first):
            assert write(body) == most
        assert client.get_object(Bucket=BUCKET, Key=folder)["Body"].read() == first
