"""The contract of a store, held against every kind of storage: real servers, real faults."""

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support import object_stores
from tests.support.busy_proxy import BusyProxy, Fault, busy_proxy
from tests.support.forks import in_own_process

from ledgerbeam.io.errors import UserError
from ledgerbeam.io.storage import object_store, stores

SLOW = pytest.mark.slow
REMOTE = [pytest.param("gs", marks=SLOW), pytest.param("s3", marks=SLOW)]

# How the requests begin by which an object is read, and is made.
DOWNLOAD = {"gs": "GET /download/", "s3": "GET /"}
UPLOAD = {"gs": "POST /upload/", "s3": "PUT /"}

ODD_NAMES = [
    "a b.txt",
    "date=2024-06-28/part-0.csv",
    "hash#1.txt",
    "percent%20.txt",
    "plus+and&.txt",
    "straße-名前.txt",
    "tilde~'quote'.txt",
]


def kind(root: str) -> str:
    return root.split("://")[0]


def write(uri: str, data: bytes) -> None:
    assert stores.create(uri, data)


def names_found(root: str, pattern: str) -> list[str]:
    return [info.uri.removeprefix(f"{root}/") for info in stores.find(f"{root}/{pattern}")]


@contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """Run with these variables, and with clients that see them."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                if value is None:
                    patch.delenv(name, raising=False)
                else:
                    patch.setenv(name, value)
            stores._store.cache_clear()
            yield
    finally:
        stores._store.cache_clear()


@contextmanager
def faults_before(root: str) -> Iterator[object_stores.FaultyProxy]:
    """Reach the store of `root` through a network whose faults can be chosen."""
    variable = object_stores.ENDPOINT[kind(root)]
    with (
        object_stores.faulty_proxy(os.environ[variable]) as proxy,
        environment(**{variable: proxy.url}),
    ):
        yield proxy


class TestCreate:
    @pytest.mark.parametrize("data", [b"one\r\n", b"", random.Random(0).randbytes(100_000)])
    def test_what_was_created_is_read(self, root: str, data: bytes) -> None:
        uri = f"{root}/folder/object"
        assert stores.create(uri, data) is True
        assert stores.read_bytes(uri) == data

    def test_a_second_creation_changes_nothing(self, root: str) -> None:
        uri = f"{root}/object"
        write(uri, b"first")
        before = stores.stat_of(uri)
        assert stores.create(uri, b"second") is False
        assert stores.create(uri, b"first") is False
        assert stores.read_bytes(uri) == b"first"
        assert stores.stat_of(uri) == before

    def test_arrow_buffers_are_data_too(self, root: str) -> None:
        buffer = pa.py_buffer(b"-0123456789-").slice(1, 10)
        assert stores.create(f"{root}/object", buffer) is True
        assert stores.create(f"{root}/object", buffer) is False
        assert stores.read_bytes(f"{root}/object") == b"0123456789"

    def test_large_objects(self, root: str) -> None:
        data = random.Random(1).randbytes(20_000_000)
        uri = f"{root}/large"
        write(uri, data)
        assert stores.create(uri, data[::-1]) is False
        assert stores.read_bytes(uri) == data

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_names(self, root: str, name: str) -> None:
        write(f"{root}/{name}", name.encode())
        assert stores.create(f"{root}/{name}", b"again") is False
        assert stores.read_bytes(f"{root}/{name}") == name.encode()
        assert names_found(root, name) == names_found(root, "**") == [name]

    def test_of_eight_processes_exactly_one_creates_the_object(self, root: str) -> None:
        script = """
import sys
from ledgerbeam.io.storage import stores

writer, *uris = sys.argv[1:]
stores.stat_of(uris[0])
print("ready", flush=True)
sys.stdin.readline()
print(*(stores.create(uri, writer.encode() * 10_000) for uri in uris))
"""
        uris = [f"{root}/race-{number}" for number in range(10)]
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(number), *uris],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(8)
        ]
        assert [writer.stdout and writer.stdout.readline() for writer in writers] == ["ready\n"] * 8
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        answers = [writer.communicate(timeout=120)[0].split() for writer in writers]
        for uri, claims in zip(uris, zip(*answers, strict=True), strict=True):
            assert sorted(claims) == ["False"] * 7 + ["True"]
            assert stores.read_bytes(uri) == str(claims.index("True")).encode() * 10_000

    @pytest.mark.parametrize("root", REMOTE, indirect=True)
    @pytest.mark.parametrize("size", [10, 10_000_000])
    def test_a_lost_answer_does_not_make_our_object_another_s(self, root: str, size: int) -> None:
        uri = f"{root}/object"
        data = b"m" * size
        # A large upload to Cloud Storage takes two requests, and loses the answer to the second.
        request = UPLOAD[kind(root)] if size < 8_000_000 else "PUT /"
        with faults_before(root) as proxy:
            proxy.cut_next(request, after=0)
            assert stores.create(uri, data) is True
            assert proxy.cuts == 1
            assert stores.read_bytes(uri) == data

    @pytest.mark.parametrize("root", REMOTE, indirect=True)
    def test_a_lost_answer_does_not_make_another_s_object_ours(self, root: str) -> None:
        uri = f"{root}/object"
        write(uri, b"equal")
        with faults_before(root) as proxy:
            proxy.cut_next(UPLOAD[kind(root)], after=0)
            assert stores.create(uri, b"equal") is False
            assert proxy.cuts == 1

    @pytest.mark.parametrize("root", [pytest.param("s3", marks=SLOW)], indirect=True)
    def test_a_conflict_is_tried_again(self, root: str) -> None:
        assert stores.create(f"{root}/conflict", b"1") is True
        assert stores.read_bytes(f"{root}/conflict") == b"1"


@contextmanager
def busy(root: str) -> Iterator[BusyProxy]:
    """Reach the store of `root` through a proxy that answers some requests by errors."""
    variable = object_stores.ENDPOINT[kind(root)]
    with busy_proxy(os.environ[variable]) as proxy, environment(**{variable: proxy.url}):
        yield proxy


class TestBusyStore:
    @pytest.mark.parametrize("root", REMOTE, indirect=True)
    @pytest.mark.parametrize("status", [500, 503])
    def test_what_was_not_done_is_tried_again(self, root: str, status: int) -> None:
        uri = f"{root}/object"
        upload, head = UPLOAD[kind(root)].split()[0], "HEAD" if kind(root) == "s3" else "GET"
        calls: list[tuple[str, Callable[[], object], object]] = [
            (upload, lambda: stores.create(uri, b"data"), True),
            ("GET", lambda: stores.read_bytes(uri), b"data"),
            ("GET", lambda: [info.uri for info in stores.find(f"{root}/obj*")], [uri]),
            (head, lambda: stores.stat_of(uri) is not None, True),
        ]
        with busy(root) as proxy:
            for method, call, expected in calls:
                proxy.faults.clear()
                proxy.next(method, Fault(status), Fault(status))
                assert call() == expected
                assert proxy.faults == [(method, Fault(status))] * 2
            proxy.next("DELETE", Fault(status), Fault(status))
            stores.delete(uri)
        assert stores.stat_of(uri) is None

    @pytest.mark.parametrize("root", REMOTE, indirect=True)
    @pytest.mark.parametrize("status", [500, 503])
    def test_what_was_done_without_an_answer_is_one_s_own(self, root: str, status: int) -> None:
        uri = f"{root}/object"
        method = UPLOAD[kind(root)].split()[0]
        with busy(root) as proxy:
            proxy.next(method, Fault(status, applied=True), Fault(status))
            assert stores.create(uri, b"equal") is True
            assert len(proxy.faults) == 2
            # Another call's object isn't, though it holds the same bytes.
            proxy.next(method, Fault(status, applied=True))
            assert stores.create(uri, b"equal") is False
        assert stores.read_bytes(uri) == b"equal"

    @pytest.mark.parametrize("root", [pytest.param("s3", marks=SLOW)], indirect=True)
    def test_one_that_stays_busy_is_told_in_one_line(self, root: str) -> None:
        with busy(root) as proxy:
            proxy.choose = lambda method, number: Fault(503)
            with pytest.raises(UserError, match="the store is busy or out of order") as caught:
                stores.create(f"{root}/object", b"data")
        assert "\n" not in str(caught.value)


class TestFind:
    NAMES = (
        ".hidden/a.csv",
        "a.csv",
        "a/.b.csv",
        "a/b.csv",
        "a/b/c.csv",
        "a/b/c.txt",
        "a1.csv",
        "a2.csv",
        "é.csv",
        "ﬁ.csv",
        "😀.csv",
    )
    FOUND: ClassVar[dict[str, list[str]]] = {
        "*": ["a.csv", "a1.csv", "a2.csv", "é.csv", "ﬁ.csv", "😀.csv"],
        "a*.csv": ["a.csv", "a1.csv", "a2.csv"],
        "a?.csv": ["a1.csv", "a2.csv"],
        "a[!1].csv": ["a2.csv"],
        "[ab]*": ["a.csv", "a1.csv", "a2.csv"],
        "*/*": ["a/b.csv"],
        "a/*/c.*": ["a/b/c.csv", "a/b/c.txt"],
        "a/**": ["a/b.csv", "a/b/c.csv", "a/b/c.txt"],
        "a/**/c.csv": ["a/b/c.csv"],
        "**/b.csv": ["a/b.csv"],
        "**/*.txt": ["a/b/c.txt"],
        "**/a/**/b/*.csv": ["a/b/c.csv"],
        "a**.csv": ["a.csv", "a1.csv", "a2.csv"],
        ".hidden/*": [".hidden/a.csv"],
        ".*/*": [".hidden/a.csv"],
        "a/.*": ["a/.b.csv"],
        "a.csv": ["a.csv"],
        "[a].csv": ["a.csv"],
        "a": [],
        "a/b": [],
        "a.cs": [],
        "none*": [],
        "none/*": [],
    }

    def test_patterns(self, root: str) -> None:
        for name in self.NAMES:
            write(f"{root}/{name}", b"")
        assert {pattern: names_found(root, pattern) for pattern in self.FOUND} == self.FOUND

    def test_sizes_and_versions(self, root: str) -> None:
        write(f"{root}/a", b"1234")
        write(f"{root}/b", b"")
        found = stores.find(f"{root}/*")
        assert [info.size for info in found] == [4, 0]
        assert found == [stores.stat_of(f"{root}/a"), stores.stat_of(f"{root}/b")]
        stores.delete(f"{root}/a")
        write(f"{root}/a", b"5678")
        assert stores.find(f"{root}/a") != found[:1]

    @pytest.mark.parametrize("root", [pytest.param("s3", marks=SLOW)], indirect=True)
    def test_more_objects_than_one_page_of_a_listing(self, root: str) -> None:
        names = [f"{number:04}" for number in range(1_050)]
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda name: stores.create(f"{root}/{name}", b""), names))
        assert names_found(root, "*") == names

    @pytest.mark.parametrize("root", REMOTE, indirect=True)
    def test_placeholders_of_folders_are_no_objects_in_them(self, root: str) -> None:
        assert not object_store.matches("folder/", "folder/*")
        assert not object_store.matches("folder/", "**")
        write(f"{root}/folder/object", b"")
        assert names_found(root, "folder/*") == ["folder/object"]


def _read_in_a_fork(uri: str) -> None:
    assert stores.read_bytes(uri) == b"1"

    def read_anew() -> None:
        assert stores._store.cache_info().currsize == 0
        assert stores.read_bytes(uri) == b"1"

    child = multiprocessing.get_context("fork").Process(target=read_anew)
    child.start()
    assert stores.read_bytes(uri) == b"1"
    child.join(60)
    assert child.exitcode == 0


class TestOpenInput:
    def test_ranges(self, root: str) -> None:
        data = random.Random(2).randbytes(1_000_000)
        write(f"{root}/object", data)
        with stores.open_input(f"{root}/object") as file:
            assert file.size() == len(data)
            assert file.seek(900_000) == 900_000
            assert file.read(10) == data[900_000:900_010]
            assert file.tell() == 900_010
            file.seek(-5, 2)
            assert file.read(100) == data[-5:]
            assert file.read(1) == b""
            assert file.read_at(7, 300_000) == data[300_000:300_007]
            file.seek(0)
            assert file.read() == data

    def test_an_empty_object(self, root: str) -> None:
        write(f"{root}/object", b"")
        with stores.open_input(f"{root}/object") as file:
            assert (file.size(), file.read(), file.read(5)) == (0, b"", b"")

    def test_parquet(self, root: str) -> None:
        table = pa.table({"id": range(100_000), "text": [f"t{n % 97}" for n in range(100_000)]})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=10_000)
        assert stores.create(f"{root}/object", sink.getvalue())
        with stores.open_input(f"{root}/object") as file:
            assert pq.read_table(file, columns=["text"]) == table.select(["text"])

    def test_many_threads(self, root: str) -> None:
        data = random.Random(3).randbytes(3_000_000)
        write(f"{root}/object", data)

        def ends_match(number: int) -> bool:
            start = number * 61_000
            with stores.open_input(f"{root}/object") as file:
                own = file.read_at(1_000, start)
            return bool(own == shared.read_at(1_000, start) == data[start : start + 1_000])

        stores._store.cache_clear()
        with stores.open_input(f"{root}/object") as shared, ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ends_match, range(48)))

    def test_a_forked_process_gets_a_client_of_its_own(self, root: str) -> None:
        write(f"{root}/object", b"1")

        in_own_process(_read_in_a_fork, f"{root}/object")

    def test_a_missing_object(self, root: str) -> None:
        with pytest.raises(UserError, match=r"cannot read .*/folder/none: .*: check the "):
            stores.open_input(f"{root}/folder/none")
        assert stores.stat_of(f"{root}/folder/none") is None

    def test_an_object_that_changes_is_never_mixed(self, root: str) -> None:
        uri = f"{root}/object"
        write(uri, b"o" * 3_000_000)
        with stores.open_input(uri) as file:
            assert file.read(5) == b"ooooo"
            stores.delete(uri)
            write(uri, b"n" * 3_000_000)
            if uri.startswith("/"):
                assert file.read() == b"o" * 2_999_995
            else:
                with pytest.raises(UserError, match="replaced or deleted while it was read"):
                    file.read()

    @pytest.mark.parametrize("root", REMOTE, indirect=True)
    def test_a_deleted_object_is_not_cut_short(self, root: str) -> None:
        write(f"{root}/object", b"o" * 3_000_000)
        with stores.open_input(f"{root}/object") as file:
            assert file.read(5) == b"ooooo"
            stores.delete(f"{root}/object")
            with pytest.raises(UserError, match="replaced or deleted while it was read"):
                file.read()

    @pytest.mark.parametrize("root", REMOTE, indirect=True)
    def test_a_broken_download_is_tried_again(self, root: str) -> None:
        data = random.Random(4).randbytes(3_000_000)
        write(f"{root}/object", data)
        with faults_before(root) as proxy, stores.open_input(f"{root}/object") as file:
            proxy.cut_next(DOWNLOAD[kind(root)], after=1_000_000)
            assert file.read() == data
            assert proxy.cuts == 1


class TestDelete:
    def test_delete(self, root: str) -> None:
        uri = f"{root}/object"
        write(uri, b"1")
        stores.delete(uri)
        assert stores.find(uri) == []
        stores.delete(uri)
        assert stores.create(uri, b"2") is True


class TestLocalFailures:
    def test_a_file_where_a_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        for name in ("file/object", "file/folder/object"):
            with pytest.raises(UserError, match="a part of the path is a file"):
                stores.create(str(tmp_path / name), b"")
            with pytest.raises(UserError, match="a part of the path is a file"):
                stores.open_input(str(tmp_path / name))
            assert stores.find(str(tmp_path / name)) == []

    def test_a_folder_where_a_file_should_be(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot read"):
            stores.read_bytes(str(tmp_path))
        with pytest.raises(UserError, match="cannot delete"):
            stores.delete(str(tmp_path))
        assert stores.find(str(tmp_path)) == []

    def test_a_write_that_breaks_off_leaves_nothing(self, tmp_path: Path) -> None:
        limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
        message = _failure_of_creation(tmp_path / "object", [], limit)
        assert message.startswith(f"cannot write {tmp_path}/object: File too large")
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk(self, tmp_path: Path) -> None:
        # A file system of 64 KiB in a name space of its own: it needs no root, and no clean-up.
        mount = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}"
        prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
        if shutil.which("unshare") is None or subprocess.run([*prefix, mount]).returncode != 0:
            pytest.skip("no right to mount; the test above breaks off a write in another way")
        message = _failure_of_creation(
            tmp_path / "object", [*prefix, f'{mount} && exec "$0" "$@"'], ""
        )
        assert "No space left on device: free some space" in message


def _failure_of_creation(path: Path, prefix: list[str], preparation: str) -> str:
    """The error of creating 100,000 bytes in another process; it must leave an empty folder."""
    script = f"""
import os, sys
from ledgerbeam.io import errors
from ledgerbeam.io.storage import stores
{preparation}
try:
    stores.create(sys.argv[1], bytes(100_000))
except errors.UserError as error:
    assert os.listdir(os.path.dirname(sys.argv[1])) == []
    print(error)
"""
    command = [*prefix, sys.executable, "-c", script, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class TestRemoteFailures:
    @pytest.mark.parametrize("root", REMOTE, indirect=True)
    def test_a_missing_bucket(self, root: str) -> None:
        uri = f"{kind(root)}://ledgerbeam-none/object"
        with pytest.raises(UserError, match=f"cannot list {uri}[*].*check the name of the bucket"):
            stores.find(f"{uri}*")
        with pytest.raises(UserError, match=f"cannot write {uri}.*check the name of the bucket"):
            stores.create(uri, b"")
        with pytest.raises(UserError, match=f"cannot read {uri}.*check the names of bucket"):
            stores.open_input(uri)
        assert stores.find(uri) == []

    @SLOW
    def test_cloud_storage_without_permission(self, gcs: str) -> None:
        _all_verbs_fail(f"gs://{object_stores.FORBIDDEN_BUCKET}/object", "role Storage Object User")

    @SLOW
    def test_s3_without_permission(self) -> None:
        with object_stores.amazon_s3(accept_credentials=False) as store, environment(**store.env):
            advice = "(allow this account s3:ListBucket|the credentials are not valid)"
            _all_verbs_fail(f"{store.bucket}/object", advice)

    def test_cloud_storage_without_credentials(self, tmp_path: Path) -> None:
        with environment(
            STORAGE_EMULATOR_HOST=None,
            GOOGLE_APPLICATION_CREDENTIALS=None,
            CLOUDSDK_CONFIG=str(tmp_path),
            NO_GCE_CHECK="true",
        ):
            _all_verbs_fail("gs://bucket/object", "gcloud auth application-default login")

    def test_s3_without_credentials(self, tmp_path: Path) -> None:
        with environment(
            AWS_ENDPOINT_URL=object_stores.unused_endpoint(),
            AWS_ACCESS_KEY_ID=None,
            AWS_SECRET_ACCESS_KEY=None,
            AWS_PROFILE=None,
            AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"),
            AWS_CONFIG_FILE=str(tmp_path / "none"),
            AWS_EC2_METADATA_DISABLED="true",
        ):
            _all_verbs_fail("s3://bucket/object", "set AWS_ACCESS_KEY_ID")

    @pytest.mark.parametrize("root", REMOTE, indirect=True)
    def test_an_endpoint_that_is_not_there_is_given_up_within_a_minute(self, root: str) -> None:
        variable = object_stores.ENDPOINT[kind(root)]
        with environment(**{variable: object_stores.unused_endpoint()}):
            before = time.monotonic()
            with pytest.raises(UserError, match=f"cannot write {root}/object: .*check the network"):
                stores.create(f"{root}/object", b"")
            assert time.monotonic() - before < 65

    @pytest.mark.parametrize("uri", ["gs://bucket", "gs:///name", "gs://_b/name", "s3://b*/name"])
    def test_uris_that_name_no_object(self, uri: str) -> None:
        _all_verbs_fail(uri, "the bucket in full")

    @pytest.mark.parametrize("uri", ["a\0b", "file:///a%00b"])
    def test_no_file_has_the_character_nul_in_its_name(self, uri: str) -> None:
        _all_verbs_fail(uri, "NUL: correct it")

    def test_an_endpoint_that_is_no_url(self) -> None:
        with environment(STORAGE_EMULATOR_HOST="nonsense", AWS_ENDPOINT_URL="nonsense"):
            _all_verbs_fail("gs://bucket/object", "STORAGE_EMULATOR_HOST")
            _all_verbs_fail("s3://bucket/object", "set AWS_ENDPOINT_URL")

    def test_an_unknown_scheme(self) -> None:
        with pytest.raises(UserError, match="no storage is known for ftp://"):
            stores.find("ftp://host/*")


def _all_verbs_fail(uri: str, advice: str) -> None:
    with pytest.raises(UserError, match=advice):
        stores.find(f"{uri}*")
    with pytest.raises(UserError, match=advice):
        stores.stat_of(uri)
    with pytest.raises(UserError, match=advice):
        stores.open_input(uri)
    with pytest.raises(UserError, match=advice):
        stores.create(uri, b"")
    with pytest.raises(UserError, match=advice):
        stores.delete(uri)
