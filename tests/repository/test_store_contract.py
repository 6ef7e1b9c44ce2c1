"""What every kind of store promises, carried out against each of them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from dr_pipelines.errors import ObjectMissing, RepositoryError
from dr_pipelines.repository.store import Store

ODD_KEYS = ["a b/c+d", "ä/ö €", "x=1&y=2?z#q", "%2F/percent%", "a'b\"c", "name.with.dots/...", "tilde~/(1)"]


def test_what_is_put_is_read_back(store: Store) -> None:
    store.put("a/b/c", [b"one ", memoryview(b"two "), b"", bytearray(b"three")])
    assert store.get("a/b/c") == b"one two three"
    with store.open("a/b/c") as stream:
        buffer = bytearray(6)
        assert stream.readinto(buffer) == 6  # type: ignore[attr-defined]
        assert (bytes(buffer), stream.read(2), stream.read(), stream.read(1)) == (b"one tw", b"o ", b"three", b"")


def test_an_object_without_content_is_an_object(store: Store) -> None:
    store.put("empty", [])
    info = store.info("empty")
    assert (store.get("empty"), info and info.size, store.names("")) == (b"", 0, ["empty"])


def test_a_large_object_is_read_in_pieces_as_it_was_put(store: Store) -> None:
    chunks = [bytes([number]) * 1_000_003 for number in range(20)]
    store.put("large", chunks)
    buffer, whole = bytearray(1 << 20), bytearray()
    with store.open("large") as stream:
        assert stream.readline(100) == b"\0" * 100
        whole += b"\0" * 100
        while got := stream.readinto(buffer):  # type: ignore[attr-defined]
            whole += buffer[:got]
    assert whole == b"".join(chunks)


def test_put_replaces(store: Store) -> None:
    store.put("key", [b"a longer old one"])
    store.put("key", [b"new"])
    assert store.get("key") == b"new"


def test_put_if_absent_replaces_nothing(store: Store) -> None:
    assert store.put_if_absent("a/key", [b"first"])
    assert not store.put_if_absent("a/key", [b"second"])
    assert store.get("a/key") == b"first"


def test_of_many_writers_at_once_exactly_one_puts_the_absent_object(store: Store) -> None:
    writers, rounds = 4, 5
    barrier = threading.Barrier(writers)

    def write(number: int) -> list[bool]:
        won = []
        for turn in range(rounds):
            barrier.wait(timeout=60)
            won.append(store.put_if_absent(f"race/{turn}", [b"%d " % number, b"x" * 10_000]))
        return won

    with ThreadPoolExecutor(writers) as pool:
        results = list(pool.map(write, range(writers)))
    for turn in range(rounds):
        winners = [number for number in range(writers) if results[number][turn]]
        assert len(winners) == 1
        assert store.get(f"race/{turn}") == b"%d " % winners[0] + b"x" * 10_000


def test_a_reader_sees_the_old_object_or_the_new_one_whole(store: Store) -> None:
    contents = [bytes([number]) * 100_000 for number in range(2)]
    store.put("key", [contents[0]])
    done = threading.Event()

    def replace() -> None:
        try:
            for turn in range(1, 30):
                store.put("key", [contents[turn % 2][:50_000], contents[turn % 2][50_000:]])
        finally:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(replace)
        while not done.is_set():
            assert store.get("key") in contents
        writer.result()


def test_an_open_object_is_read_to_its_end_though_it_is_replaced_meanwhile(store: Store) -> None:
    store.put("key", [b"a" * 100])
    with store.open("key") as stream:
        beginning = stream.read(10)
        store.put("key", [b"b" * 100])
        assert beginning + stream.read() == b"a" * 100


def test_what_is_not_there_is_missing(store: Store) -> None:
    store.put("folder/object", [b""])
    for key in ("nothing", "folder", "folder/object/below", "folder/objec"):
        assert store.info(key) is None
        with pytest.raises(ObjectMissing, match=key):
            store.get(key)
        with pytest.raises(ObjectMissing), store.open(key):
            pass


def test_info_tells_size_and_time(store: Store) -> None:
    store.put("key", [b"12345"])
    info = store.info("key")
    assert info is not None
    assert (info.key, info.size) == ("key", 5)
    assert abs(info.modified - datetime.now(UTC)) < timedelta(seconds=30)
    assert info.modified.tzinfo is UTC


def test_list_gives_all_that_begins_so_sorted_by_key(store: Store) -> None:
    keys = ["a/b", "a-b/c", "a.b", "a/b-c", "a/c/d/e", "a0", "b/a", "a/B", "A/b"]
    for key in keys:
        store.put(key, [key.encode()])
    assert [info.key for info in store.list("")] == sorted(keys)
    assert [(info.key, info.size) for info in store.list("a/")] == [
        ("a/B", 3),
        ("a/b", 3),
        ("a/b-c", 5),
        ("a/c/d/e", 7),
    ]
    assert [info.key for info in store.list("a")] == sorted(key for key in keys if key.startswith("a"))
    assert [info.key for info in store.list("a/c/d/e")] == ["a/c/d/e"]
    assert list(store.list("nothing/here")) == []


def test_list_goes_on_beyond_one_page_of_answers(store: Store) -> None:
    keys = [f"many/{number:04d}" for number in range(1_050)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.put(key, [b""]), keys))
    assert [info.key for info in store.list("many/")] == keys
    assert store.names("many") == [key.removeprefix("many/") for key in keys]


def test_names_gives_one_level(store: Store) -> None:
    for key in ("top", "a/b", "a/c/d", "a/c/e", "a-b", "ab/c"):
        store.put(key, [b""])
    assert store.names("") == ["a-b", "a/", "ab/", "top"]
    assert store.names("a") == store.names("a/") == ["b", "c/"]
    assert store.names("a/c") == ["d", "e"]
    assert store.names("top") == store.names("nothing") == []


def test_delete_is_idempotent_and_touches_nothing_else(store: Store) -> None:
    for key in ("a/b/c", "a/b/cd", "a/b-"):
        store.put(key, [b""])
    for key in ("a/b/c", "a/b/c", "a/b", "a", "nothing/at/all", "a/b-/below"):
        store.delete(key)
    assert [info.key for info in store.list("")] == ["a/b-", "a/b/cd"]


def test_a_folder_goes_with_its_last_object_and_comes_back(store: Store) -> None:
    store.put("a/b/c", [b"1"])
    store.put("d", [b""])
    store.delete("a/b/c")
    assert store.names("") == ["d"]
    assert store.put_if_absent("a/b/c", [b"2"])
    assert store.get("a/b/c") == b"2"


def test_objects_come_and_go_in_one_folder_at_the_same_time(store: Store) -> None:
    def come_and_go(number: int) -> None:
        for turn in range(15):
            key = f"deep/down/{number}"
            assert store.put_if_absent(key, [b"%d" % turn])
            assert store.get(key) == b"%d" % turn
            store.delete(key)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert list(store.list("")) == []


def test_a_child_sees_what_lies_below_its_prefix_and_nothing_else(store: Store) -> None:
    child = store.child("a/b").child("c/")
    store.put("a/b/outside", [b"1"])
    store.put("a/b/cc", [b""])
    child.put("inside/x", [b"2"])
    assert store.get("a/b/c/inside/x") == b"2"
    assert [info.key for info in child.list("")] == ["inside/x"]
    assert child.names("") == ["inside/"]
    assert child.info("outside") is None
    assert child.url == f"{store.url}/a/b/c"


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_names_are_names(store: Store, key: str) -> None:
    store.put(key, [b"odd"])
    assert store.get(key) == b"odd"
    assert [info.key for info in store.list("")] == [key]
    store.delete(key)
    assert list(store.list("")) == []


BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "../a",
    "a/.",
    "a\0b",
    "a\nb",
    "a\x7f",
    "a\\b",
    ".tmp/a",
    "a/.tmp",
]


@pytest.mark.parametrize("key", [*BAD_KEYS, "\ud800", "x" * 256, "/".join(["y" * 200] * 3)])
def test_what_could_lead_elsewhere_is_no_key(store: Store, key: str) -> None:
    for use in (store.get, store.info, store.delete, store.child):
        if use == store.child and key == "a/":
            continue
        with pytest.raises(RepositoryError, match="cannot be the key") as caught:
            use(key)
        assert not isinstance(caught.value, ObjectMissing)
    with pytest.raises(RepositoryError, match="cannot be the key"):
        store.put(key, [b"x"])
    with pytest.raises(RepositoryError, match="cannot be the key"):
        store.put_if_absent(key, [b"x"])
    assert list(store.list("")) == []


@pytest.mark.parametrize("prefix", ["/", "/etc", "..", "../", "a/../", "a//", "a\n/"])
def test_what_could_lead_elsewhere_is_no_prefix(store: Store, prefix: str) -> None:
    with pytest.raises(RepositoryError):
        list(store.list(prefix))
    with pytest.raises(RepositoryError):
        store.names(prefix)


def test_a_store_tells_its_room_or_that_it_has_no_limit(store: Store) -> None:
    free = store.free_bytes()
    assert free is None or free > 1 << 20
