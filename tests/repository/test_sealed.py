"""Sealed documents: what is read is what was written."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_pipelines.errors import ObjectCorrupt
from dr_pipelines.repository.sealed import seal, unseal

# Any character, half a surrogate pair too: names of files are not always text.
texts = st.text(st.characters(exclude_categories=()))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
documents = st.dictionaries(texts.filter(lambda name: name != "sha256"), values, max_size=5)
SAMPLE = {"b": 1, "a": ["x", {"sha256": "inner"}], "ö": None}


@given(document=documents)
def test_what_is_sealed_comes_back(document: dict[str, object]) -> None:
    assert unseal(seal(document), what="it") == document


def test_a_sealed_document_is_one_line_of_plain_json_that_any_reader_can_check() -> None:
    data = seal(SAMPLE)
    digest = json.loads(data)["sha256"]
    assert data == b'{"a":["x",{"sha256":"inner"}],"b":1,"\\u00f6":null,"sha256":"%s"}\n' % digest.encode()
    without = data.replace(b',"sha256":"%s"' % digest.encode(), b"").removesuffix(b"\n")
    assert hashlib.sha256(without).hexdigest() == digest


@pytest.mark.parametrize("document", [SAMPLE, {}])
def test_any_changed_bit_is_found(document: dict[str, object]) -> None:
    data = seal(document)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(ObjectCorrupt):
                unseal(bytes(changed), what="it")


@pytest.mark.parametrize("document", [SAMPLE, {}])
def test_missing_and_additional_bytes_are_found(document: dict[str, object]) -> None:
    data = seal(document)
    for position in range(len(data)):
        for changed in (data[:position], data[position + 1 :], data[:position] + b" " + data[position:]):
            with pytest.raises(ObjectCorrupt):
                unseal(changed, what="it")
    with pytest.raises(ObjectCorrupt):
        unseal(data + b" ", what="it")


def sealed_text(body: bytes) -> bytes:
    """What a forger would write: a right hash over something else than a document."""
    return body[:-1] + b',"sha256":"%s"}\n' % hashlib.sha256(body).hexdigest().encode()


@pytest.mark.parametrize(
    "body",
    [b"{]}", b'{"a":1,"a":2}', b'{"a":NaN,}', b'{"a":' + b"[" * 100_000 + b"}", b'{"a":"\xff"}', b'{"a":1} {"b":2}'],
)
def test_a_right_hash_over_something_that_is_no_document_is_refused(body: bytes) -> None:
    with pytest.raises(ObjectCorrupt, match="it is not JSON"):
        unseal(sealed_text(body), what="it")


def test_what_json_cannot_hold_is_not_sealed() -> None:
    with pytest.raises(ValueError, match="JSON"):
        seal({"a": float("nan")})
    with pytest.raises(ValueError, match="of its own"):
        seal({"sha256": "mine"})
    with pytest.raises(TypeError):
        seal({"a": object()})


def test_errors_say_what_was_damaged() -> None:
    with pytest.raises(ObjectCorrupt, match="the manifest of backup 7 is damaged"):
        unseal(seal(SAMPLE).replace(b"x", b"y"), what="the manifest of backup 7")
