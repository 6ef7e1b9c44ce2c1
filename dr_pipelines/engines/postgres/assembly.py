"""A chain of backups as one: of each block of each file, which backup has its newest version.

So a chain is restored as a full backup is: every part is fetched once, in any order, and each block is written once,
where it belongs. What `pg_combinebackup` makes of the same backups is the same, byte for byte; it wants all of them
on disk first, and copies the whole once more.
"""

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from dr_pipelines.engines.layout import Write
from dr_pipelines.engines.postgres.blocks import BLOCK, Blocks, is_partial, whole_path
from dr_pipelines.errors import RestoreError
from dr_pipelines.repository.manifest import FileEntry, Manifest, Part, Range

__all__ = ["Assembly", "Headers", "needed_partials"]

Headers = Mapping[int, Blocks]
"""Of one backup: the headers of its files of which it holds only some blocks, by index."""
_NOWHERE = 0xFF
"""No backup has the block: it is zero."""
_KEPT = 512
"""Files whose blocks' owners are kept at hand: at most 128 KiB each."""


@dataclass(frozen=True)
class _Version:
    """A file in one backup of the chain: whole, or some blocks of it."""

    backup: int
    index: int
    size: int
    blocks: Blocks | None


class Assembly:
    """The layout of what the last backup of a chain describes. Pure.

    `headers` holds, for each backup of the chain, those of the files that `needed_partials` names. `contents` is that
    of files that are written anew, by path. Raises RestoreError where the backups make no whole.
    """

    def __init__(self, chain: Sequence[Manifest], headers: Sequence[Headers], contents: Mapping[str, bytes]) -> None:
        if len(chain) > _NOWHERE:
            raise RestoreError(f"a chain of {len(chain)} backups is longer than any that is made")
        self._chain = chain
        self._versions = dict(_versions(chain, headers))
        self._owners_of = lru_cache(_KEPT)(self._find_owners)
        self.files = tuple(self._whole(number, entry, contents) for number, entry in enumerate(chain[-1].files))
        self.contents = {number: contents[e.path] for number, e in enumerate(self.files) if e.path in contents}
        self.assembled = frozenset(self._versions)
        self._uses = self._find_uses()

    @cached_property
    def _needed(self) -> tuple[tuple[int, Part], ...]:
        """The parts that hold anything that no newer backup has, each with the number of its backup."""
        return tuple(
            (number, part)
            for number, backup in enumerate(self._chain)
            for part in backup.parts
            if next(self._writes(number, part), None) is not None
        )

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for _, part in self._needed)

    @cached_property
    def raw_bytes(self) -> int:
        return sum(part.raw_size for part in self.parts)

    def writes(self, number: int) -> Sequence[Write]:
        """What of the part with this number goes where: what no newer backup has."""
        return list(self._writes(*self._needed[number]))

    def _whole(self, number: int, entry: FileEntry, contents: Mapping[str, bytes]) -> FileEntry:
        path, size = whole_path(entry), entry.size
        if number in self._versions:
            newest = self._versions[number][0].blocks
            assert newest is not None
            size = newest.length * BLOCK
        elif path in contents:
            size = len(contents[path])
        return entry.model_copy(update={"path": path, "size": size})

    def _find_uses(self) -> list[dict[int, int]]:
        """For each backup: which of its files are needed, and for which file of the whole."""
        uses: list[dict[int, int]] = [{} for _ in self._chain]
        for number, versions in self._versions.items():
            for version in versions:
                uses[version.backup][version.index] = number
        for number, entry in enumerate(self.files):
            if number not in self._versions and number not in self.contents and entry.kind == "file":
                uses[-1][number] = number
        return uses

    def _find_owners(self, number: int) -> bytes:
        """For each block of an assembled file, the number of the backup that it is taken from."""
        versions = self._versions[number]
        newest = versions[0].blocks
        assert newest is not None
        owners = bytearray([_NOWHERE]) * newest.length
        counts = newest.length
        for version in versions:
            if version.blocks is None:
                reach = min(counts, version.size // BLOCK)
                owners[:reach] = owners[:reach].replace(bytes([_NOWHERE]), bytes([version.backup]))
                break
            for block in version.blocks.numbers:
                if block < counts and owners[block] == _NOWHERE:
                    owners[block] = version.backup
            counts = min(counts, version.blocks.keeps)
        return bytes(owners)

    def _writes(self, backup: int, part: Part) -> Iterator[Write]:
        start = 0
        for piece in part.ranges:
            number = self._uses[backup].get(piece.file)
            if number is not None and number not in self._versions:
                yield Write(number, piece.offset, start, piece.length)
            elif number is not None:
                version = next(each for each in self._versions[number] if each.backup == backup)
                runs = self._runs(number, version, piece)
                for offset, at, length in runs:
                    yield Write(number, offset, start + at - piece.offset, length)
            start += piece.length

    def _runs(self, number: int, version: _Version, piece: Range) -> Iterator[tuple[int, int, int]]:
        """Of a piece of one version: the offset in the whole file, the offset in the version, the length."""
        end = piece.offset + piece.length
        owners = self._owners_of(number)
        if version.blocks is None:
            runs = _owned(owners, version.backup, piece.offset // BLOCK, -(-end // BLOCK))
            found = ((first * BLOCK, first * BLOCK, (last - first) * BLOCK) for first, last in runs)
        else:
            blocks = version.blocks
            first = max(0, (piece.offset - blocks.start) // BLOCK)
            last = min(len(blocks.numbers), max(0, -(-(end - blocks.start) // BLOCK)))
            runs = _consecutive(blocks.numbers, owners, version.backup, first, last)
            found = (
                (blocks.numbers[first] * BLOCK, blocks.start + first * BLOCK, (last - first) * BLOCK)
                for first, last in runs
            )
        for offset, at, length in found:
            # A piece may begin and end within a block.
            low, high = max(at, piece.offset), min(at + length, end)
            if low < high:
                yield offset + low - at, low, high - low


def needed_partials(chain: Sequence[Manifest]) -> list[set[int]]:
    """For each backup of a chain: the indexes of the files whose headers are needed."""
    needed: list[set[int]] = [set() for _ in chain]
    for _, versions in _by_path(chain):
        for backup, index in versions:
            if is_partial(chain[backup].files[index]):
                needed[backup].add(index)
    return needed


def _by_path(chain: Sequence[Manifest]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Each file of the last backup of which it holds only some blocks, with what it is put together of, newest first.

    Pairs of a backup and an index in it; the last of them is whole.
    """
    places = [
        {whole_path(entry): index for index, entry in enumerate(backup.files) if entry.kind == "file"}
        for backup in chain
    ]
    newest = len(chain) - 1
    for number, entry in enumerate(chain[-1].files):
        if not is_partial(entry):
            continue
        path, versions = whole_path(entry), [(newest, number)]
        while is_partial(chain[versions[-1][0]].files[versions[-1][1]]):
            older = versions[-1][0] - 1
            if older < 0 or path not in places[older]:
                holder = chain[older + 1].backup_id
                raise RestoreError(
                    f"the backup {holder} holds some blocks of {path}, and the one that it is based on has no such file"
                )
            versions.append((older, places[older][path]))
        yield number, versions


def _versions(chain: Sequence[Manifest], headers: Sequence[Headers]) -> Iterator[tuple[int, list[_Version]]]:
    for number, places in _by_path(chain):
        versions = []
        for backup, index in places:
            entry = chain[backup].files[index]
            blocks = headers[backup][index] if is_partial(entry) else None
            if blocks is not None and blocks.size != entry.size:
                raise RestoreError(
                    f"{entry.path} in the backup {chain[backup].backup_id} has {entry.size} bytes and "
                    f"{len(blocks.numbers)} blocks, which does not fit"
                )
            versions.append(_Version(backup, index, entry.size, blocks))
        yield number, versions


def _owned(owners: bytes, backup: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Runs of blocks of one owner, within a range."""
    for match in re.compile(re.escape(bytes([backup])) + b"+", re.DOTALL).finditer(owners, first, last):
        yield match.span()


def _consecutive(numbers: "array[int]", owners: bytes, backup: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Runs of blocks of one owner that follow one another in the whole file, as places in `numbers`."""
    begin = None
    for place in range(first, last):
        block = numbers[place]
        owned = block < len(owners) and owners[block] == backup
        if begin is not None and (not owned or block != numbers[place - 1] + 1):
            yield begin, place
            begin = None
        if owned and begin is None:
            begin = place
    if begin is not None:
        yield begin, last
