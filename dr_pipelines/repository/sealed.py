"""Plain JSON documents that carry the hash of themselves.

One line of canonical JSON (keys sorted, no blanks, ASCII with \\u escapes) whose last member is "sha256": the hash of
the line as it would be without that member and without the line's end. So a reader cuts the member off and hashes
what is left, and no reader has to reproduce anyone's way of writing JSON.
"""

import hashlib
import json
import re
from collections.abc import Mapping

from dr_pipelines.errors import ObjectCorrupt

__all__ = ["seal", "unseal"]

_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"\}\n')
_TAIL = len('"sha256":""}\n') + 64


def seal(document: Mapping[str, object]) -> bytes:
    """The document as sealed JSON. Raises ValueError where it already has a "sha256" or JSON cannot hold it."""
    if "sha256" in document:
        raise ValueError('a document to be sealed cannot have a member "sha256" of its own')
    body = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    separator = b"," if document else b""
    return body[:-1] + separator + b'"sha256":"%s"}\n' % hashlib.sha256(body).hexdigest().encode()


def unseal(data: bytes, *, what: str) -> dict[str, object]:
    """The document that was sealed, without its hash; `what` names it in errors.

    Raises ObjectCorrupt where a byte is missing, changed or added.
    """
    head, tail = data[:-_TAIL], data[-_TAIL:]
    match = _SEAL.fullmatch(tail)
    if match is None or not head.startswith(b"{"):
        raise ObjectCorrupt(f"{what} is not a sealed document: it is truncated, or something else was written there")
    body = head.removesuffix(b",") + b"}"
    if hashlib.sha256(body).hexdigest().encode() != match[1] or (head != b"{" and not head.endswith(b",")):
        raise ObjectCorrupt(f"{what} is damaged: its hash does not match")
    try:
        document = json.loads(body, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ObjectCorrupt(f"{what} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ObjectCorrupt(f"{what} is not a JSON object")
    return document


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a member is there twice")
    return document
