"""What can go wrong on the way to a bucket, against a real S3 service."""

import base64
import contextlib
import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from dr_pipelines.errors import ObjectMissing, RepositoryError, RepositoryMissing, RepositoryUnreachable
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.seaweed import ObjectStorage
from dr_pipelines.repository.locks import hold
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.repository.s3 import S3Store
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock


def store_at(storage: ObjectStorage, endpoint: str, bucket: str | None = None, secret: str | None = None) -> S3Store:
    return S3Store(
        bucket or storage.bucket,
        secrets.token_hex(8),
        endpoint=endpoint,
        access_key_id=SecretStr(storage.access_key),
        secret_access_key=SecretStr(secret or storage.secret_key),
    )


def uses_of(store: S3Store) -> list[Callable[[], object]]:
    return [
        lambda: store.put("a", [b"x"]),
        lambda: store.put_if_absent("a", [b"x"]),
        lambda: store.get("a"),
        lambda: list(store.list("")),
        lambda: store.names(""),
        lambda: store.delete("a"),
        lambda: store.find_bucket(create=False),
        lambda: store.info("a"),
    ]


def test_a_service_that_is_not_there_is_unreachable_and_says_so_soon(object_storage: ObjectStorage) -> None:
    store = store_at(object_storage, f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(RepositoryUnreachable) as caught:
        store.get("a")
    assert time.monotonic() - started < 40
    assert "DR_S3_ENDPOINT" in caught.value.hint
    assert caught.value.retryable


def test_wrong_keys_are_refused_with_a_hint(object_storage: ObjectStorage) -> None:
    store = store_at(object_storage, object_storage.endpoint, secret="wrong")
    for use in uses_of(store):
        with pytest.raises(RepositoryError) as caught:
            use()
        assert not isinstance(caught.value, RepositoryUnreachable | ObjectMissing)
        assert "key" in caught.value.hint
        assert "wrong" not in str(caught.value).replace("the keys are wrong", "")


def test_no_keys_at_all_are_named_as_the_cause(object_storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    store = S3Store(object_storage.bucket, endpoint=object_storage.endpoint)
    with pytest.raises(RepositoryError) as caught:
        store.get("a")
    assert "DR_S3_ACCESS_KEY_ID" in caught.value.hint


def test_a_bucket_that_is_missing_is_named_as_the_cause(object_storage: ObjectStorage) -> None:
    store = store_at(object_storage, object_storage.endpoint, bucket=f"missing-{secrets.token_hex(4)}")
    # Writing is left out, since SeaweedFS then makes the bucket, and HEAD, whose 404 does not say what is missing.
    for use in uses_of(store)[2:-1]:
        with pytest.raises(RepositoryError) as caught:
            use()
        assert not isinstance(caught.value, ObjectMissing)
        assert "bucket does not exist" in caught.value.hint


def test_a_missing_bucket_is_made_where_a_repository_is_to_be_created(s3_settings: Settings) -> None:
    url = f"s3://new-{secrets.token_hex(4)}"
    with pytest.raises(RepositoryMissing, match="there is no repository in s3://new-"):
        open_repository(url, settings=s3_settings)
    made = open_repository(url, settings=s3_settings, create=True)
    assert open_repository(f"{url}/", settings=s3_settings).id == made.id
    assert made.store.names("") == ["dr-repository.json"]


@pytest.mark.parametrize("bucket", ["A_b", "x"])
def test_a_name_that_no_bucket_can_have_is_refused(bucket: str, s3_settings: Settings) -> None:
    with pytest.raises(RepositoryError):
        open_repository(f"s3://{bucket}/x", settings=s3_settings, create=True)


class BadLine:
    """A way to the S3 service on which answers get lost."""

    def __init__(self, endpoint: str) -> None:
        place = urlsplit(endpoint)
        self._target = (place.hostname or "", place.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._ends = [self._listener]
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.break_off_after: int | None = None
        """Bytes of answers after which each connection ends."""
        self.lose_answers = 0
        """So many of the next PUTs arrive, and their answers do not."""
        self._threads[0].start()

    def close(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._ends += [client, server]
                lost = threading.Event()
                for copy in (self._requests, self._answers):
                    thread = threading.Thread(target=copy, args=(client, server, lost))
                    self._threads.append(thread)
                    thread.start()

    def _requests(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if data.startswith(b"PUT ") and self.lose_answers:
                    self.lose_answers -= 1
                    lost.set()
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _answers(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        passed = 0
        with client, server, contextlib.suppress(OSError):
            while data := server.recv(65536):
                # Boto asks whether it may send; what counts is the answer after that.
                if lost.is_set() and not data.startswith(b"HTTP/1.1 100"):
                    break
                limit = self.break_off_after
                client.sendall(data if limit is None else data[: max(0, limit - passed)])
                passed += len(data)
                if limit is not None and passed >= limit:
                    break
            # The other thread waits in recv, which closing alone does not end.
            client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def bad_line(object_storage: ObjectStorage) -> Iterator[BadLine]:
    line = BadLine(object_storage.endpoint)
    yield line
    line.close()


def test_an_object_that_breaks_off_can_be_tried_again(object_storage: ObjectStorage, bad_line: BadLine) -> None:
    store = store_at(object_storage, bad_line.endpoint)
    content = secrets.token_bytes(1_000_000)
    store.put("a", [content])
    bad_line.break_off_after = 300_000
    with pytest.raises(RepositoryUnreachable, match="cannot read s3://"):
        store.get("a")
    buffer = bytearray(len(content))
    with pytest.raises(RepositoryUnreachable), store.open("a") as stream:
        stream.readinto(buffer)  # type: ignore[attr-defined]
    bad_line.break_off_after = None
    assert store.get("a") == content


def test_a_put_whose_answer_is_lost_is_tried_again(object_storage: ObjectStorage, bad_line: BadLine) -> None:
    store = store_at(object_storage, bad_line.endpoint)
    bad_line.lose_answers = 1
    store.put("a", [b"x" * 100_000])
    assert bad_line.lose_answers == 0
    assert store.get("a") == b"x" * 100_000


def test_a_lock_is_held_though_the_answer_that_says_so_is_lost(
    object_storage: ObjectStorage, bad_line: BadLine
) -> None:
    store = store_at(object_storage, bad_line.endpoint)
    bad_line.lose_answers = 1
    assert not store.put_if_absent("a", [b"mine"])
    assert store.get("a") == b"mine"
    bad_line.lose_answers = 1
    with hold(store, "backup", purpose="a test", clock=SystemClock()) as lock:
        assert bad_line.lose_answers == 0
        assert lock.holds()


def test_what_is_stored_carries_its_sha256(object_storage: ObjectStorage) -> None:
    store = store_at(object_storage, object_storage.endpoint)
    store.put("a", [b"some ", b"content"])
    answer = store._client.head_object(Bucket=object_storage.bucket, Key=f"{store._prefix}a", ChecksumMode="ENABLED")
    expected = base64.b64encode(hashlib.sha256(b"some content").digest()).decode()
    assert answer["ChecksumSHA256"] == expected
