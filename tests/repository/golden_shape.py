"""Whether one repository is of the format of another: the same kinds of objects, with at least the same members."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from dr_pipelines.repository.envelope import unwrap
from dr_pipelines.repository.sealed import unseal

_OWN = (
    (r"\d{8}T\d{6}Z-(\w+)-[0-9a-f]{6}", r"<\1>"),
    (r"[0-9a-f]{64}", "<hash>"),
    (r"/\d{4}/\d{2}/", "/<month>/"),
    (r"[0-9A-F]{24}", "<segment>"),
    (r"[0-9A-F]{8}(?=[/.])", "<timeline>"),
    (r"[0-9a-f]{8}-[0-9a-f]{8}", "<bytes>"),
    (r"\d{6,}", "<number>"),
)
"""What of a key belongs to one object; what is left is its kind."""


@dataclass(frozen=True)
class Object:
    """What is looked at of an object: the members of its document or header, and the data behind that."""

    members: dict[str, object]
    data: bytes | None


def objects_of(folder: Path) -> Iterator[tuple[str, Object]]:
    """By key, every object that has a form."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".yaml":
            content = path.read_bytes()
            if path.suffix == ".json":
                found = Object(unseal(content, what=str(path)), None)
            else:
                header = unseal(content[: content.index(b"\n") + 1], what=str(path))
                found = Object(header, unwrap(BytesIO(content), max_raw=1 << 30)[1])
            yield str(path.relative_to(folder)), found


def differences(kept: Path, made: Path) -> list[str]:
    """What a reader of the first would miss in the second, which is to hold the same; additions are none."""
    before, after = dict(objects_of(kept)), dict(objects_of(made))
    found = [f"{key} is {'missing' if key in before else 'new'}" for key in sorted(before.keys() ^ after.keys())]
    for key in before.keys() & after.keys():
        one, other = before[key], after[key]
        found += [f"{key}: {what}" for what in _missing(one.members, other.members, values=one.data is None)]
        if one.data != other.data:
            found.append(f"{key} holds other data")
    return found


def differences_in_kind(kept: Path, made: Path) -> list[str]:
    """The same for repositories that hold nothing in common: by the kinds of objects and the members that one has."""
    before, after = _kinds(kept), _kinds(made)
    found = [f"{kind} is {'missing' if kind in before else 'new'}" for kind in sorted(before.keys() ^ after.keys())]
    for kind in before.keys() & after.keys():
        found += [f"{kind}: {what}" for what in _missing(before[kind], after[kind], values=False)]
    return found


def _kinds(folder: Path) -> dict[str, dict[str, object]]:
    kinds: dict[str, dict[str, object]] = {}
    for key, found in objects_of(folder):
        for pattern, instead in _OWN:
            key = re.sub(pattern, instead, key)
        # A manifest that has `parent`, a header that has `raw_sha256`: what any of them has, the kind has.
        kinds.setdefault(key, {}).update(found.members)
    return kinds


def _missing(before: object, after: object, *, values: bool, where: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            if name not in after:
                yield f"{where}{name} is missing"
            else:
                yield from _missing(value, after[name], values=values, where=f"{where}{name}.")
    elif isinstance(before, list) and isinstance(after, list):
        for one, other in zip(before, after, strict=False):
            yield from _missing(one, other, values=values, where=where)
    elif before is not None and after is not None and (type(before) is not type(after) or (values and before != after)):
        yield f"{where[:-1]} was {before!r} and is {after!r}"
