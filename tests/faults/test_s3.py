"""S3 that is busy, breaks off, is slow, refuses or is gone: waited for where it can pass, told of where it cannot."""

import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from pydantic import SecretStr

from dr_pipelines.engines.postgres.verify import verify
from dr_pipelines.errors import RepositoryError, RepositoryUnreachable
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.seaweed import ObjectStorage
from dr_pipelines.repository import patience, s3
from dr_pipelines.repository.manifest import survey_backups
from dr_pipelines.repository.patience import patiently
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.repository.s3 import S3Store
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until
from tests import archived
from tests.agent.conftest import Agents, made_up
from tests.archived import Source
from tests.faults.conftest import ROOT
from tests.faults.s3_way import Fault, Held, Refusal, Reset, Way, way_to

pytestmark = pytest.mark.slow

BUSY = Refusal(503, "SlowDown", "Please reduce your request rate.")
THROTTLED = Refusal(429, "TooManyRequests")
BROKEN = Refusal(500, "InternalError")
BROKEN_OFF = Reset(1000)
SEED = 5


@pytest.fixture(scope="module")
def storage() -> Iterator[ObjectStorage]:
    """An S3 service of this module's own."""
    with archived.state() as settings:
        leases = Leases(settings.state_dir)
        made = ObjectStorage.start(settings, leases, owner="tests")
        yield made
        made.stop(leases)


@pytest.fixture(scope="module")
def one_way(storage: ObjectStorage) -> Iterator[Way]:
    with way_to(storage.endpoint) as made:
        yield made


@pytest.fixture
def way(one_way: Way) -> Iterator[Way]:
    """The way, on which nothing happens yet."""
    one_way.seen.clear()
    one_way.met.clear()
    yield one_way
    one_way.clear()


@pytest.fixture
def store(storage: ObjectStorage, way: Way) -> S3Store:
    return S3Store(
        storage.bucket,
        secrets.token_hex(4),
        endpoint=way.endpoint,
        access_key_id=SecretStr(storage.access_key),
        secret_access_key=SecretStr(storage.secret_key),
    )


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between the attempts, which are as many as always."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0)
    monkeypatch.setattr(patience, "PAUSES", (0.0,) * len(patience.PAUSES))


CLIENT, ALL = 4, 4 * (1 + len(patience.PAUSES))
"""How often the client asks by itself, and how often in all."""


@pytest.mark.parametrize("fault", [BUSY, THROTTLED, BROKEN, BROKEN_OFF], ids=["503", "429", "500", "reset"])
class TestWhatPasses:
    """Faults that may be over at the next attempt."""

    @pytest.mark.usefixtures("hasty")
    def test_is_tried_again_and_the_object_is_whole(self, store: S3Store, way: Way, fault: Fault) -> None:
        content = secrets.token_bytes(3_000_000)
        for method, use in (
            ("PUT", lambda: store.put("a", [content])),
            ("PUT", lambda: store.put_if_absent("b", [content])),
            ("GET", lambda: patiently(lambda: store.get("a"))),
        ):
            way.first(CLIENT - 1, fault, method)
            use()
        assert len(way.met) == 3 * (CLIENT - 1)
        assert store.get("a") == store.get("b") == content

    @pytest.mark.usefixtures("hasty")
    def test_is_given_up_after_a_bounded_number_of_attempts(self, store: S3Store, way: Way, fault: Fault) -> None:
        store.put("kept", [b"x" * 10_000])
        for method, use in (
            ("PUT", lambda: store.put("a", [b"x" * 10_000])),
            ("GET", lambda: store.get("kept")),
        ):
            way.seen.clear()
            way.always(fault, method)
            with pytest.raises(RepositoryUnreachable) as caught:
                patiently(use)
            assert len(way.seen) == ALL
            assert "try again" in caught.value.hint or "DR_S3_ENDPOINT" in caught.value.hint
        way.clear()
        assert store.info("a") is None


REFUSALS = {
    "expired credentials": (Refusal(400, "ExpiredToken", "The provided token has expired."), "get new ones"),
    "keys that were taken back": (Refusal(403, "InvalidAccessKeyId"), "DR_S3_ACCESS_KEY_ID"),
    "rights that were taken back": (Refusal(403, "AccessDenied"), "lack a permission"),
    "a clock that is wrong": (Refusal(403, "RequestTimeTooSkewed"), "clock is wrong"),
    "a bucket that is gone": (Refusal(404, "NoSuchBucket"), "does not exist"),
    "a quota that is used up": (Refusal(403, "QuotaExceeded"), "make room"),
}


@pytest.mark.parametrize(("refusal", "hint"), REFUSALS.values(), ids=REFUSALS)
def test_what_does_not_pass_is_told_of_at_once(store: S3Store, way: Way, refusal: Refusal, hint: str) -> None:
    way.always(refusal)
    uses: tuple[Callable[[], object], ...] = (
        lambda: store.put("a", [b"x"]),
        lambda: store.put_if_absent("a", [b"x"]),
        lambda: store.get("a"),
        lambda: list(store.list("")),
        lambda: store.delete("a"),
    )
    for use in uses:
        way.seen.clear()
        with pytest.raises(RepositoryError) as caught:
            patiently(use)
        assert not caught.value.retryable
        assert hint in caught.value.hint
        assert len(way.seen) == 1


@pytest.mark.usefixtures("hasty")
def test_a_service_that_does_not_answer_is_not_waited_for_without_end(
    storage: ObjectStorage, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_CONFIG", s3._CONFIG.merge(Config(read_timeout=0.2)))
    keys = (SecretStr(storage.access_key), SecretStr(storage.secret_key))
    store = S3Store(storage.bucket, "x", endpoint=way.endpoint, access_key_id=keys[0], secret_access_key=keys[1])
    way.always(Held(60))
    began = time.monotonic()
    with pytest.raises(RepositoryUnreachable, match="timeout"):
        store.get("a")
    assert len(way.seen) == CLIENT
    assert time.monotonic() - began < 10


@pytest.mark.needs("faketime")
@pytest.mark.parametrize("apart", ["+1d", "-1d"])
def test_a_wrong_clock_is_named_as_the_cause(storage: ObjectStorage, apart: str) -> None:
    """By a real service, which does not let it pass."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "DR_REPOSITORY": f"s3://{storage.bucket}/{secrets.token_hex(4)}",
        "DR_S3_ENDPOINT": storage.endpoint,
        "DR_S3_ACCESS_KEY_ID": storage.access_key,
        "DR_S3_SECRET_ACCESS_KEY": storage.secret_key,
        "DR_STATE_DIR": str(storage.folder),
    }
    command = ["faketime", "-f", apart, sys.executable, "-m", "dr_pipelines.cli", "backup", "list"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 1
    assert "clock" in ran.stderr, ran.stderr


@pytest.fixture(scope="module")
def source(storage: ObjectStorage, one_way: Way) -> Iterator[Source]:
    """A server whose agent and backups go that way."""
    with archived.state() as made:
        settings = made.model_copy(
            update={
                "repository": f"s3://{storage.bucket}/{secrets.token_hex(4)}",
                "part_size": 1 << 18,
                "s3_endpoint": one_way.endpoint,
                "s3_access_key_id": SecretStr(storage.access_key),
                "s3_secret_access_key": SecretStr(storage.secret_key),
            }
        )
        repository = open_repository(str(settings.repository), settings=settings, create=True)
        with archived.source(settings, repository) as running:
            running.do("CREATE TABLE log (text text)")
            yield running


def has_spooled(source: Source) -> bool:
    return any(not path.name.startswith(".") for path in source.spool.iterdir())


def test_a_bad_way_costs_no_backup_no_log_and_no_restore(source: Source, way: Way) -> None:
    way.sometimes(0.04, (BUSY, THROTTLED, BROKEN, BROKEN_OFF, Held(0.2)), SEED)
    source.back_up()
    source.do("INSERT INTO log SELECT md5(n::text) FROM generate_series(1, 50000) n")
    source.ship()
    found = verify(source.store, survey_backups(source.store).complete[0], workers=2, progress=lambda *_: None)
    assert all(check.passed for check in found.checks), found.checks
    with archived.restore(source.settings, source.repository) as restore:
        restore.run()
        assert restore.ask("SELECT count(*) FROM log") == 50000
        assert archived.failed(restore.validate()) == []
    assert {type(fault) for fault in way.met} == {Refusal, Reset, Held}


@pytest.mark.usefixtures("hasty")
def test_a_service_that_stays_busy_ends_a_backup_and_leaves_nothing_that_lists_as_complete(
    source: Source, way: Way
) -> None:
    before = survey_backups(source.store).complete
    way.always(BUSY, "PUT", "/parts/00000[4-9]")
    with pytest.raises(RepositoryUnreachable, match="reduce your request rate"):
        source.back_up()
    way.clear()
    assert survey_backups(source.store).complete == before
    source.back_up()
    assert survey_backups(source.store).incomplete == ()


@pytest.mark.usefixtures("hasty")
def test_the_agent_waits_whatever_it_says_and_stores_all_when_that_is_over(source: Source, way: Way) -> None:
    source.ship()
    way.always(BUSY)
    source.do("INSERT INTO log SELECT md5(n::text) FROM generate_series(1, 20000) n", "SELECT pg_switch_wal()")
    assert wait_until(lambda: has_spooled(source), timeout=20)
    for refusal in (BUSY, REFUSALS["expired credentials"][0], REFUSALS["a bucket that is gone"][0]):
        way.always(refusal)
        assert wait_until(lambda: refusal in way.met, timeout=20)  # noqa: B023
    assert has_spooled(source)
    way.clear()
    source.ship()
    assert not has_spooled(source)


def test_a_bucket_that_was_deleted_is_told_of_and_not_filled(
    storage: ObjectStorage, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What would be put into an empty one is worth nothing without what is gone: it stays in the spool."""
    caplog.set_level("INFO", logger="dr_pipelines.agent")
    client = boto3.client(
        "s3",
        endpoint_url=storage.endpoint,
        region_name=storage.region,
        aws_access_key_id=storage.access_key,
        aws_secret_access_key=storage.secret_key,
        config=Config(proxies={}),
    )
    bucket = f"bucket-{secrets.token_hex(4)}"
    keys = {
        "s3_endpoint": storage.endpoint,
        "s3_access_key_id": SecretStr(storage.access_key),
        "s3_secret_access_key": SecretStr(storage.secret_key),
    }
    own = settings.model_copy(update=keys)
    client.create_bucket(Bucket=bucket)
    repository = open_repository(f"s3://{bucket}/here", settings=own, create=True)
    agents = Agents(tmp_path, repository)
    agents.start()
    try:
        agents.drop(made_up(3))
        agents.await_empty()
        client.delete_bucket(Bucket=bucket)
        # Some services make it anew for whoever puts something there, and if it be the agent's last word.
        expected = "no longer the repository|bucket does not exist"
        assert wait_until(lambda: re.search(expected, said(caplog)), timeout=20), said(caplog)
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
        agents.drop(made_up(4))
        with pytest.raises(RepositoryError):
            open_repository(repository.url, settings=own)
    finally:
        agents.stop()
    assert agents.waiting() == [made_up(4)[0]]
    left = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    assert not [found["Key"] for found in left if "/log/" in found["Key"]]


def said(caplog: pytest.LogCaptureFixture) -> str:
    """What the agent wrote into its log."""
    return " ".join(str(getattr(record, "fields", "")) for record in caplog.records)
