"""Chains of backups: what a restore of one needs, and what breaks it is named."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from dr_pipelines.repository.chains import chain_of, missing_parts, restorable
from dr_pipelines.repository.envelope import wrap
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import (
    FORMATS,
    Manifest,
    Part,
    Range,
    delete_backup,
    part_key,
    survey_backups,
    write_manifest,
)
from dr_pipelines.repository.store import Store

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def put(store: Store, backup_id: str, parent: str | None = None, *, system: str = "7301", hours: int = 0) -> Manifest:
    kind = "full" if parent is None else "incremental"
    made = Manifest.model_validate(
        {
            "format_version": FORMATS[kind],
            "backup_id": backup_id,
            "service": "database",
            "engine": "postgres",
            "kind": kind,
            "parent": parent,
            "system_identifier": system,
            "server_version": "18.6",
            "tool_version": "1",
            "started_at": NOON + timedelta(hours=hours),
            "stopped_at": NOON + timedelta(hours=hours),
            "files": (),
            "parts": (),
        }
    )
    write_manifest(store, made)
    return made


def ids(store: Store, manifest: Manifest) -> tuple[list[str], str | None]:
    chain = chain_of(manifest, survey_backups(store))
    return [each.backup_id for each in chain.backups], chain.broken


@pytest.fixture
def last(folder_store: FolderStore) -> Manifest:
    """The last of a full backup and two incremental ones; another chain lies beside them."""
    put(folder_store, "other-full")
    put(folder_store, "other", "other-full")
    put(folder_store, "full")
    put(folder_store, "first", "full")
    return put(folder_store, "second", "first")


def test_a_full_backup_is_a_chain_by_itself(folder_store: FolderStore) -> None:
    assert ids(folder_store, put(folder_store, "full")) == (["full"], None)


def test_a_chain_begins_with_its_full_backup_and_ends_with_what_was_asked_for(
    folder_store: FolderStore, last: Manifest
) -> None:
    assert ids(folder_store, last) == (["full", "first", "second"], None)


def test_one_that_is_missing_breaks_the_chain_and_is_named(folder_store: FolderStore, last: Manifest) -> None:
    delete_backup(folder_store, "first")
    assert ids(folder_store, last) == (["second"], "its chain is broken before second: first is missing")


def test_the_full_backup_that_is_missing_breaks_the_chain(folder_store: FolderStore, last: Manifest) -> None:
    delete_backup(folder_store, "full")
    assert ids(folder_store, last) == (["first", "second"], "its chain is broken before first: full is missing")


def test_one_whose_manifest_is_damaged_breaks_the_chain_and_the_damage_is_told(
    folder_store: FolderStore, last: Manifest, flip: Callable[[Store, str, int], None]
) -> None:
    flip(folder_store, "backups/first/manifest.json", 100)
    backups, broken = ids(folder_store, last)
    assert backups == ["second"]
    assert broken is not None and "first cannot be used: the manifest of backup first is damaged" in broken


def test_one_that_is_not_complete_breaks_the_chain(folder_store: FolderStore, last: Manifest) -> None:
    delete_backup(folder_store, "first")
    folder_store.put("backups/first/parts/000000", [b"data"])
    assert ids(folder_store, last)[1] == "its chain is broken before second: first is not complete"


def test_a_circle_is_no_chain(folder_store: FolderStore) -> None:
    put(folder_store, "one", "two")
    assert ids(folder_store, put(folder_store, "two", "one"))[1] == (
        "its chain is broken before one: two is based on what is based on it"
    )


def test_a_parent_of_another_system_is_none(folder_store: FolderStore) -> None:
    put(folder_store, "full", system="7302")
    assert ids(folder_store, put(folder_store, "first", "full"))[1] == (
        "its chain is broken before first: full is a backup of another system"
    )


def test_what_is_restorable_has_a_whole_chain_and_the_rest_is_told(folder_store: FolderStore, last: Manifest) -> None:
    assert restorable(survey_backups(folder_store)) == survey_backups(folder_store)
    delete_backup(folder_store, "full")
    survey = restorable(survey_backups(folder_store))
    assert {each.backup_id for each in survey.complete} == {"other", "other-full"}
    assert {backup_id: error.message for backup_id, error in survey.damaged} == {
        "first": "its chain is broken before first: full is missing",
        "second": "its chain is broken before first: full is missing",
    }


def test_a_part_that_is_gone_or_cut_off_is_missing(folder_store: FolderStore) -> None:
    wrapped = wrap(b"data")
    envelope = wrapped.envelope
    made = put(folder_store, "full").model_copy(
        update={
            "parts": tuple(
                Part(
                    key=part_key("full", number),
                    codec=envelope.codec,
                    encryption=envelope.encryption,
                    stored_sha256=envelope.stored_sha256,
                    stored_size=envelope.stored_size,
                    raw_size=envelope.raw_size,
                    ranges=(Range(number, 0, 4),),
                )
                for number in range(3)
            )
        }
    )
    for part in made.parts:
        folder_store.put(part.key, wrapped.chunks)
    assert missing_parts(folder_store, made) == ()
    folder_store.put(part_key("full", 1), [b"".join(wrapped.chunks)[:-1]])
    folder_store.delete(part_key("full", 2))
    assert missing_parts(folder_store, made) == (part_key("full", 1), part_key("full", 2))
