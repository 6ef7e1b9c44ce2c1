"""The tree of errors: what is drawn is what there is, and an error keeps what it says on its way."""

import pickle
import re

import pytest

from dr_pipelines import errors
from dr_pipelines.errors import DrError, ObjectMissing, PlanError

LINE = re.compile(r"^    (?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+) +(?P<code>\d|exit code)  ", re.MULTILINE)


def _classes(root: type[DrError] = DrError) -> list[type[DrError]]:
    return [root, *(found for child in root.__subclasses__() for found in _classes(child))]


def _drawn(docstring: str) -> dict[str, tuple[str | None, int, bool]]:
    """By name: the parent, the exit code and whether a retry can help, as the tree has them."""
    drawn: dict[str, tuple[str | None, int, bool]] = {}
    above: dict[int, str] = {}
    for line in docstring.splitlines():
        match = LINE.match(line)
        if match:
            depth = len(match["branch"]) // 4
            above[depth] = match["name"]
            code = 1 if match["code"] == "exit code" else int(match["code"])
            drawn[match["name"]] = (above.get(depth - 1), code, "(a retry can help)" in line)
    return drawn


def test_the_drawn_tree_is_the_tree_of_classes() -> None:
    there = {
        kind.__name__: (None if kind is DrError else kind.__mro__[1].__name__, kind.exit_code, kind.retryable)
        for kind in _classes()
        if kind.__module__ == errors.__name__
    }
    assert _drawn(errors.__doc__ or "") == there


def test_a_tree_that_leaves_a_class_out_or_gives_it_another_code_differs() -> None:
    text = errors.__doc__ or ""
    drawn = _drawn(text)
    assert _drawn(re.sub(r"\n.*PlanError.*", "", text)) == {name: drawn[name] for name in drawn if name != "PlanError"}
    assert _drawn(text.replace("PlanError                 2", "PlanError                 1")) != drawn


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.__name__)
def test_every_error_crosses_a_process_with_its_hint(kind: type[DrError]) -> None:
    again = pickle.loads(pickle.dumps(kind("it broke", hint="mend it")))
    assert (type(again), again.message, again.hint, str(again)) == (kind, "it broke", "mend it", "it broke (mend it)")


def test_codes_are_unique_and_in_kebab_case() -> None:
    codes = [kind("").code for kind in _classes()]
    assert len(set(codes)) == len(codes)
    assert PlanError("").code == "plan-error"
    assert ObjectMissing("").code == "object-missing"


def test_without_a_hint_an_error_is_its_message() -> None:
    assert str(DrError("it broke")) == "it broke"
