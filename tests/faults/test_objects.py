"""One object of the repository damaged: each kind flipped, cut short and gone, and what each command says of it.

What is not listed for a command is as if nothing had happened: there the command does not need the object, or the
damage cannot be seen in it.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dr_pipelines.cli import execute
from dr_pipelines.engines.postgres import target as targets
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import Settings
from tests import archived
from tests.faults import every_kind
from tests.faults.every_kind import EveryKind

COMMANDS = {
    "list": ["backup", "list", "database"],
    "verify": ["backup", "verify", "database"],
    "plan a restore": ["restore", "database", "--dry-run"],
    "exposure": ["exposure", "database"],
    "report": ["report", "adherence"],
}
USUAL = {"list": 0, "verify": 0, "plan a restore": 0, "exposure": 0, "report": 3}
"""No drill was ever made: that is the report's 3."""

Said = tuple[int, str]
EVERYWHERE = tuple(COMMANDS)


def all_say(*said: object, of: tuple[str, ...] = EVERYWHERE) -> dict[str, Said]:
    return dict.fromkeys(of, said)  # type: ignore[arg-type]


DAMAGED, CUT = "is damaged: its hash does not match", "is not a sealed document: it is truncated"
WITH_A_PLAN = ("verify", "exposure", "report")
NEEDS_THE_LOG = ("plan a restore", "exposure", "verify")
CASES: dict[tuple[str, str], dict[str, Said]] = {
    ("root", "flipped"): all_say(1, f"dr-repository.json of HERE {DAMAGED}"),
    ("root", "truncated"): all_say(1, f"dr-repository.json of HERE {CUT}"),
    ("root", "absent"): all_say(1, "HERE has no dr-repository.json"),
    # A backup that is to be made meets it: tests/repository/test_locks.py.
    ("lock", "flipped"): {},
    ("lock", "truncated"): {},
    ("lock", "absent"): {},
    # The backup before takes its place, and that is said.
    ("manifest", "flipped"): all_say(0, f"{{newer}} {DAMAGED}", of=("list", "plan a restore", "exposure"))
    | {"verify": (1, "manifests_are_what_was_stored: {newer}: the manifest of backup {newer} is damaged")},
    ("manifest", "truncated"): all_say(0, f"{{newer}} {CUT}", of=("list", "plan a restore", "exposure"))
    | {"verify": (1, "manifests_are_what_was_stored: {newer}: the manifest of backup {newer} is not a sealed")},
    ("manifest", "absent"): {"list": (0, "{newer} incomplete")},
    ("part", "flipped"): {"verify": (1, "{key} is damaged: its hash does not match")},
    ("part", "truncated"): {"verify": (1, "{key} is truncated: [0-9]+ bytes are missing")},
    ("part", "absent"): {"verify": (1, "{key} is not there")},
    ("tombstone", "flipped"): all_say(0, DAMAGED, of=("list", "plan a restore", "exposure"))
    | {"verify": (1, f"manifests_are_what_was_stored: .* {DAMAGED}")},
    ("tombstone", "truncated"): all_say(0, CUT, of=("list", "plan a restore", "exposure"))
    | {"verify": (1, f"manifests_are_what_was_stored: .* {CUT}")},
    ("tombstone", "absent"): {},
    ("segment", "flipped"): {"verify": (1, "{key} is damaged: its hash does not match")},
    ("segment", "truncated"): {"verify": (1, "{key} is truncated")},
    ("segment", "absent"): {"plan a restore": (1, "the backup {newer} cannot be restored: .*missing: {name}")}
    | all_say(1, "{newer} cannot be restored: .*missing: {name}", of=("verify",))
    | all_say(3, "{newer} cannot be restored: .*missing: {name}", of=("exposure",)),
    ("chunk", "flipped"): {"verify": (1, "{key} is damaged: its hash does not match")},
    ("chunk", "truncated"): {"verify": (1, "{key} is truncated")},
    ("chunk", "absent"): all_say(1, "the log ends at 0/800FA0, though it had reached 0/801770", of=NEEDS_THE_LOG)
    | {"exposure": (3, "the log ends at 0/800FA0, though it had reached 0/801770")},
    ("history", "flipped"): all_say(1, f"{{name}}: the header of .*/{{name}} {DAMAGED}", of=NEEDS_THE_LOG),
    ("history", "truncated"): all_say(1, f"{{name}}: the header of .*/{{name}} {CUT}", of=NEEDS_THE_LOG),
    ("history", "absent"): all_say(1, "the log ends at 0/600000, though it had reached 0/801770", of=NEEDS_THE_LOG)
    | {"exposure": (3, "the log ends at 0/600000, though it had reached 0/801770")},
    # Nothing reads them: a restore takes neither.
    ("backup note", "flipped"): {},
    ("backup note", "truncated"): {},
    ("backup note", "absent"): {},
    ("partial segment", "flipped"): {},
    ("partial segment", "truncated"): {},
    ("partial segment", "absent"): {},
    # A restore does without, and less is known of what it brings back.
    ("position", "flipped"): all_say(0, f"position.json {DAMAGED}; up to when", of=("plan a restore",))
    | {"verify": (1, f"position_is_what_was_stored: position.json {DAMAGED}")}
    | {"exposure": (3, f"position.json {DAMAGED}.*no agent has reported")},
    ("position", "truncated"): all_say(0, f"position.json {CUT}", of=("plan a restore",))
    | {"verify": (1, f"position_is_what_was_stored: position.json {CUT}"), "exposure": (3, f"position.json {CUT}")},
    ("position", "absent"): {"exposure": (3, "no agent has reported")},
    # Only what is restored of the old timeline needs it.
    ("position that was left", "flipped"): all_say(0, f"00000001.json {DAMAGED}", of=("plan a restore", "exposure")),
    ("position that was left", "truncated"): all_say(0, f"00000001.json {CUT}", of=("plan a restore", "exposure")),
    ("position that was left", "absent"): {},
    # Whoever goes on with that execution meets it: see below.
    ("execution", "flipped"): {},
    ("execution", "truncated"): {},
    ("execution", "absent"): {},
    ("event", "flipped"): {},
    ("event", "truncated"): {},
    ("event", "absent"): {},
    # Whoever answers, cuts over or lets backups expire meets them: tests/repository/test_approvals.py, test_uses.py.
    **{
        (kind, how): {} for kind in ("approval", "answer", "fence", "use") for how in ("flipped", "truncated", "absent")
    },
    ("record", "flipped"): {"report": (3, f"the record {{stem}} is left out: the record {{stem}} {DAMAGED}")},
    ("record", "truncated"): {"report": (3, f"the record {{stem}} is left out: the record {{stem}} {CUT}")},
    ("record", "absent"): {},
    ("plan", "flipped"): all_say(1, "the copy of the plan {stem:.12} is damaged", of=WITH_A_PLAN)
    | all_say(0, "going on without a plan: the copy of the plan", of=("list", "plan a restore")),
    ("plan", "truncated"): all_say(1, "the copy of the plan {stem:.12} is damaged", of=WITH_A_PLAN)
    | all_say(0, "going on without a plan: the copy of the plan", of=("list", "plan a restore")),
    ("plan", "absent"): all_say(1, "{key} is not there", of=WITH_A_PLAN)
    | all_say(0, "going on without a plan: .*{key} is not there", of=("list", "plan a restore")),
    ("plan pointer", "flipped"): all_say(1, f"the pointer to the current plan {DAMAGED}", of=WITH_A_PLAN)
    | all_say(0, "going on without a plan: the pointer", of=("list", "plan a restore")),
    ("plan pointer", "truncated"): all_say(1, f"the pointer to the current plan {CUT}", of=WITH_A_PLAN)
    | all_say(0, "going on without a plan: the pointer", of=("list", "plan a restore")),
    ("plan pointer", "absent"): {"exposure": (3, "none promised"), "report": (2, "there is no recovery plan")},
}


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> EveryKind:
    return every_kind.make(tmp_path_factory.mktemp("whole") / "repository")


@pytest.fixture
def place(whole: EveryKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the repository, which the commands use; its agent has just told where it is."""
    folder = tmp_path / "repository"
    every_kind.tell_position(whole.copy(folder).store)
    for name in [name for name in os.environ if name.startswith("DR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DR_REPOSITORY", str(folder))
    monkeypatch.setenv("DR_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    # What is switched off in Dagster is not what is asked here.
    monkeypatch.setattr("dr_pipelines.cli.report.switched_off", lambda settings: ())
    yield folder
    assert not (tmp_path / "state" / "logs").exists(), "an error that nobody foresaw"


Say = Callable[[str], tuple[int, str]]


@pytest.fixture
def say(place: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Carries a command out; its exit code and all that it said, in one line."""

    def carry_out(command: str) -> tuple[int, str]:
        code = execute(COMMANDS[command])
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split()).replace(str(place), "HERE")

    return carry_out


@pytest.mark.parametrize(("kind", "how"), [("nothing", "damaged"), *CASES])
def test_what_is_damaged_is_named_and_stops_nothing_else(
    whole: EveryKind, place: Path, say: Say, kind: str, how: str
) -> None:
    named = {"newer": whole.newer.backup_id}
    if kind in whole.keys:
        key = whole.keys[kind]
        path = place / key
        damage(path, how)
        named |= {"key": key, "name": path.name, "stem": path.stem}
    for command in COMMANDS:
        code, words = CASES.get((kind, how), {}).get(command, (USUAL[command], ""))
        found, said = say(command)
        assert found == code, f"{command}: {said}"
        if words:
            assert re.search(words.format_map({name: re.escape(each) for name, each in named.items()}), said), command
        else:
            assert not re.search("damaged|truncated|missing|cannot be|is not there|left out", said), said


def shape(key: str) -> str:
    """The key without what tells objects of one kind apart."""
    return re.sub(r"[0-9a-f]{64}|[0-9a-f]{8}-[0-9a-f]{8}|\d{8}T\d{6}Z-\w+-\w{6}|[0-9A-F]{8,24}|\d+", "*", key)


def test_each_kind_of_object_is_among_them(whole: EveryKind) -> None:
    assert {kind for kind, _ in CASES} == set(whole.keys)
    assert {how for _, how in CASES} == {"flipped", "truncated", "absent"}
    assert len(CASES) == 3 * len(whole.keys)
    # A tombstone lies where a manifest would.
    shapes = {shape(found.key) for found in whole.repository.store.list("")}
    assert shapes == {shape(key) for key in whole.keys.values()}
    assert len(shapes) == len(whole.keys) - 1
    # What the format is known to have, but for the repositories of drills, which hold the same again.
    kept = (str(path.relative_to(every_kind.GOLDEN)) for path in every_kind.GOLDEN.rglob("*") if path.is_file())
    assert {shape(key) for key in kept if not key.startswith("drills/")} <= shapes


def test_the_root_of_another_repository_will_do_in_the_place_of_a_damaged_one(
    whole: EveryKind, place: Path, say: Say, tmp_path: Path
) -> None:
    damage(place / whole.keys["root"], "flipped")
    other = open_repository(str(tmp_path / "other"), settings=Settings(), create=True)
    shutil.copy(Path(other.url) / whole.keys["root"], place)
    assert [say(command)[0] for command in COMMANDS] == list(USUAL.values())


@pytest.mark.parametrize("how", ["flipped", "truncated"])
@pytest.mark.parametrize("kind", ["execution", "event"])
def test_an_execution_whose_journal_is_damaged_is_not_gone_on_with(
    whole: EveryKind, place: Path, world_readable_folder: Path, capsys: pytest.CaptureFixture[str], kind: str, how: str
) -> None:
    target = world_readable_folder / "target"
    note = targets.Note(whole.execution, whole.newer.backup_id, str(every_kind.SYSTEM))
    targets.claim(target, note, None)
    targets.let_go(target)
    before = archived.files_below(target)
    damage(place / whole.keys[kind], how)
    code = execute(["restore", "database", "--target", str(target), "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert (code, error["code"]) == (1, "object-corrupt")
    assert whole.execution in error["message"]
    assert "another target" in error["hint"]
    assert archived.files_below(target) == before
