"""A service written into a plan's text, with every comment, blank line and order in it left as it was."""

from collections.abc import Mapping
from typing import Any

import yaml

from dr_pipelines.errors import PlanError
from dr_pipelines.plan.models import Plan
from dr_pipelines.plan.reading import parse_plan

__all__ = ["as_yaml", "insert_service"]

Entry = Mapping[str, Any]
_BY_HAND = "write it in by hand"


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)


def as_yaml(entries: list[Entry], indent: int = 0) -> str:
    """Entries of a list, as they stand in a plan, indented by so many columns."""
    text = yaml.dump([dict(entry) for entry in entries], Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return "".join(" " * indent + line if line.strip() else line for line in text.splitlines(keepends=True))


def insert_service(text: str, service: Entry, runbook: Entry | None, *, name: str = "recovery-plan.yaml") -> str:
    """The plan's text with one more service, and with its runbook where one is given, each as the last of its list.

    Raises PlanError where the plan or what comes of it cannot be accepted, or where its lists are not written in lines.
    """
    before = parse_plan(text, name=name)
    added = _append(text, "services", service, name)
    if runbook is not None:
        added = _append(added, "runbooks", runbook, name)
    _check(before, parse_plan(added, name=name), service, runbook, name)
    return added


def _check(before: Plan, after: Plan, service: Entry, runbook: Entry | None, name: str) -> None:
    """Nothing but the new entries may be different: the text was edited, not written anew."""
    new = [after.services[-1].name, *(entry.name for entry in after.runbooks[len(before.runbooks) :])]
    wanted = [service["name"], *([runbook["name"]] if runbook else [])]
    if (after.tiers, after.services[:-1], after.runbooks[: len(before.runbooks)], new) != (
        before.tiers,
        before.services,
        before.runbooks,
        wanted,
    ):
        raise PlanError(f"{name}: a service cannot be added without changing something else", hint=_BY_HAND)


def _append(text: str, section: str, entry: Entry, name: str) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += newline
    node = _section(text, section)
    if node is None:
        block = ["\n", f"{section}:\n", *as_yaml([entry], indent=2).splitlines(keepends=True)]
        at = len(lines)
    elif not isinstance(node, yaml.SequenceNode) or node.flow_style or not node.value:
        raise PlanError(f"{name}: the list {section} is not written in lines of its own", hint=_BY_HAND)
    else:
        at = _end(node, lines)
        apart = any(_is_blank(lines[item.start_mark.line - 1]) for item in node.value[1:])
        block = ["\n"] * apart + as_yaml([entry], indent=node.start_mark.column).splitlines(keepends=True)
    return "".join(lines[:at] + [line.replace("\n", newline) for line in block] + lines[at:])


def _section(text: str, section: str) -> yaml.Node | None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)  # the plan was accepted
    return next((value for key, value in root.value if key.value == section), None)


def _end(node: yaml.Node, lines: list[str]) -> int:
    """The number of lines up to the end of a list, with the comments that belong to its last entry."""
    last = node
    while isinstance(last, yaml.CollectionNode) and not last.flow_style and last.value:
        last = last.value[-1] if isinstance(last, yaml.SequenceNode) else last.value[-1][1]
    end = last.end_mark.line + (last.end_mark.column > 0)
    # A block of text ends where the next thing begins.
    while _is_blank(lines[end - 1]) or lines[end - 1].lstrip().startswith("#"):
        end -= 1
    while end < len(lines) and lines[end].lstrip().startswith("#") and lines[end][0] in " \t":
        end += 1
    return end


def _is_blank(line: str) -> bool:
    return not line.strip()
