"""Chains of backups as one, of made-up clusters: whatever happened to a file between two backups, it comes back."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_pipelines.engines.parts import PartReader, PartWriter
from dr_pipelines.engines.pieces import read_beginnings, read_file
from dr_pipelines.engines.postgres.assembly import Assembly, needed_partials
from dr_pipelines.engines.postgres.blocks import BLOCK, FIXED, Blocks, announced_size, is_partial
from dr_pipelines.errors import ObjectMissing, RestoreError
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import FORMATS, FileEntry, Manifest, part_key
from dr_pipelines.repository.store import Store
from tests.engines.postgres.test_blocks import header

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LABEL = b"the label of a full backup"


@dataclass(frozen=True)
class Step:
    """What happened to a relation before a backup: cut off, extended by zeros that no log tells of, blocks written."""

    cut_to: int | None
    extended_by: int
    written: tuple[int, ...]
    whole: bool
    """The server sends the whole file: too many blocks changed."""


Content = tuple[int, ...]
"""A block is a number; 0: zeros."""


def after(content: Content, step: Step, mark: int) -> tuple[Content, bytes]:
    """The relation afterwards, and the file that an incremental backup has of it."""
    kept = len(content) if step.cut_to is None else min(step.cut_to, len(content))
    blocks = list(content[:kept]) + [0] * step.extended_by
    for block in step.written:
        blocks += [0] * (block + 1 - len(blocks))
        blocks[block] = mark
    keeps = len(blocks)
    if step.cut_to is not None:
        # Of what is beyond the cut, only what was written is known of.
        keeps, blocks = kept, blocks[: max([kept, *(block + 1 for block in step.written)])]
    data = b"".join(stored((blocks[block],)) for block in step.written)
    return tuple(blocks), header(*step.written, keeps=keeps) + data


def stored(content: Content) -> bytes:
    return b"".join(bytes([number]) * BLOCK for number in content)


def back_up(store: Store, number: int, files: Mapping[str, bytes], *, part_size: int, aside: bool) -> Manifest:
    backup_id = f"backup-{number}"
    writer = PartWriter(store, part_key(backup_id, 0)[:-6], part_size=part_size, workers=1, level=1)
    with writer:
        for path, data in files.items():
            entry = FileEntry(path=path, kind="file", mode=0o600, size=len(data))
            index, put = writer.add(entry), 0
            if aside and is_partial(entry):
                put = announced_size(data)
                writer.put_aside(index, 0, data[:put])
            writer.copy(io.BytesIO(data[put:]), index, len(data), put)
        parts = writer.finish()
    kind: Literal["full", "incremental"] = "incremental" if number else "full"
    return Manifest(
        format_version=FORMATS[kind],
        backup_id=backup_id,
        service="database",
        engine="postgres",
        kind=kind,
        parent=f"backup-{number - 1}" if number else None,
        system_identifier="7301",
        server_version="18.6",
        tool_version="1",
        started_at=NOON + timedelta(hours=number),
        stopped_at=NOON + timedelta(hours=number),
        files=tuple(writer.files),
        parts=parts,
    )


def assembled(store: Store, chain: Sequence[Manifest]) -> Assembly:
    def needed(beginning: bytes) -> int:
        return announced_size(beginning) if len(beginning) >= FIXED else FIXED

    headers = [
        {index: Blocks.parse(content) for index, content in read_beginnings(store, backup, wanted, needed).items()}
        for backup, wanted in zip(chain, needed_partials(chain), strict=True)
    ]
    return Assembly(chain, headers, {"backup_label": LABEL})


def restored(store: Store, chain: Sequence[Manifest], folder: Path) -> dict[str, bytes]:
    target = folder / "target"
    target.mkdir()
    layout = assembled(store, chain)
    reader = PartReader(store, layout, target, journal=folder / "journal", owner=None, workers=2)
    assert reader.restore(lambda done, total: None) == len(layout.parts)
    assert reader.read_back() == ()
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


STEPS = st.lists(
    st.builds(
        Step,
        cut_to=st.none() | st.integers(0, 12),
        extended_by=st.sampled_from([0, 0, 0, 1, 3]),
        written=st.sets(st.integers(0, 12), max_size=8).map(lambda blocks: tuple(sorted(blocks))),
        whole=st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=5,
)


@given(
    relations=st.lists(st.tuples(st.integers(0, 10), STEPS), min_size=1, max_size=3),
    part_size=st.sampled_from([BLOCK, 20_000, 10 * BLOCK]),
    aside=st.booleans(),
)
@settings(deadline=None, max_examples=20)
def test_each_block_is_the_newest_one(relations: list[tuple[int, list[Step]]], part_size: int, *, aside: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, store = Path(place), FolderStore(Path(place) / "store")
        contents = {f"base/5/{number}": (200,) * length for number, (length, _) in enumerate(relations)}
        files = {"backup_label": b"its own", **{path: stored(content) for path, content in contents.items()}}
        chain = [back_up(store, 0, files, part_size=part_size, aside=aside)]
        for number in range(1, max(len(steps) for _, steps in relations) + 1):
            files = {"backup_label": b"another" * number, "global/pg_control": b"%d" % number}
            for path, (_, steps) in zip(list(contents), relations, strict=True):
                step = steps[number - 1] if number <= len(steps) else Step(None, 0, (), whole=False)
                contents[path], partial = after(contents[path], step, number)
                if step.whole:
                    files[path] = stored(contents[path])
                else:
                    files[path.replace("base/5/", "base/5/INCREMENTAL.")] = partial
            chain.append(back_up(store, number, files, part_size=part_size, aside=aside))
        expected = {path: stored(content) for path, content in contents.items()}
        found = restored(store, chain, folder)
        assert found.pop("backup_label") == LABEL
        assert found.pop("global/pg_control") == b"%d" % (len(chain) - 1)
        assert found == expected


def test_only_what_is_needed_is_fetched(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    big = {f"base/5/{number}": stored((9,) * 10) for number in range(4)}
    chain = [back_up(store, 0, {**big, "backup_label": b""}, part_size=10 * BLOCK, aside=True)]
    stubs = {f"base/5/INCREMENTAL.{number}": header(keeps=10) for number in range(3)}
    files = {**stubs, "base/5/3": stored((7,) * 10), "backup_label": b""}
    chain.append(back_up(store, 1, files, part_size=10 * BLOCK, aside=True))
    # Of the last file the newer backup has all; of the others it has nothing.
    assert [part.key for part in assembled(store, chain).parts] == [
        *(part_key("backup-0", number) for number in range(3)),
        part_key("backup-1", 0),
    ]
    assert restored(store, chain, tmp_path)["base/5/3"] == stored((7,) * 10)


def test_what_is_read_back_is_compared_with_what_was_written(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    chain = [back_up(store, 0, {"base/5/1": stored((1, 2, 3))}, part_size=BLOCK, aside=True)]
    partial = header(1, keeps=3) + stored((4,))
    chain.append(back_up(store, 1, {"base/5/INCREMENTAL.1": partial}, part_size=BLOCK, aside=True))
    layout, target = assembled(store, chain), tmp_path / "target"
    target.mkdir()
    reader = PartReader(store, layout, target, journal=tmp_path / "journal", owner=None, workers=1)
    reader.restore(lambda done, total: None)
    assert (target / "base/5/1").read_bytes() == stored((1, 4, 3))
    with (target / "base/5/1").open("r+b") as file:
        file.seek(BLOCK + 100)
        file.write(b"x")
    (wrong,) = reader.read_back()
    assert wrong.startswith("backups/backup-1/parts/")


class TestWhatMakesNoWhole:
    def test_some_blocks_of_a_file_that_is_in_no_backup_before(self, tmp_path: Path) -> None:
        chain = [back_up(FolderStore(tmp_path), 0, {"base/5/2": b""}, part_size=BLOCK, aside=True)]
        files = {"base/5/INCREMENTAL.1": header(keeps=3)}
        chain.append(back_up(FolderStore(tmp_path), 1, files, part_size=BLOCK, aside=True))
        with pytest.raises(
            RestoreError, match="backup-1 holds some blocks of base/5/1, and the one that it is based on"
        ):
            needed_partials(chain)

    def test_a_file_whose_size_does_not_fit_to_its_blocks(self, tmp_path: Path) -> None:
        store = FolderStore(tmp_path)
        chain = [back_up(store, 0, {"base/5/1": stored((1, 1))}, part_size=BLOCK, aside=True)]
        files = {"base/5/INCREMENTAL.1": header(1, keeps=2) + b"half a block"}
        chain.append(back_up(store, 1, files, part_size=BLOCK, aside=True))
        with pytest.raises(RestoreError, match="has 8204 bytes and 1 blocks, which does not fit"):
            assembled(store, chain)


class TestFiles:
    @pytest.fixture
    def backup(self, tmp_path: Path) -> tuple[Store, Manifest]:
        store = FolderStore(tmp_path)
        files = {"first": bytes(range(256)) * 100, "empty": b"", "second": b"2" * 700}
        return store, back_up(store, 0, files, part_size=1000, aside=True)

    def test_one_is_read_alone(self, backup: tuple[Store, Manifest]) -> None:
        store, manifest = backup
        assert read_file(store, manifest, "first") == bytes(range(256)) * 100
        assert (read_file(store, manifest, "empty"), read_file(store, manifest, "second")) == (b"", b"2" * 700)
        with pytest.raises(ObjectMissing, match="holds no third"):
            read_file(store, manifest, "third")

    def test_the_beginning_of_one_takes_no_more_parts_than_it_lies_in(self, backup: tuple[Store, Manifest]) -> None:
        store, manifest = backup
        for part in manifest.parts[2:]:
            store.delete(part.key)
        assert len(read_beginnings(store, manifest, [0], lambda _: 1500)[0]) >= 1500
        with pytest.raises(ObjectMissing):
            read_beginnings(store, manifest, [0], lambda _: 2500)
