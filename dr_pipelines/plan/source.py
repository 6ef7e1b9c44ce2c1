"""A plan's YAML as plain values, where each came from, and what no plan may contain.

The node tree is read instead of the loaded values: it has the line of each field, the keys that are there twice, and
what was written where YAML makes something else of it (`no`, `1:30`).
"""

import re
from dataclasses import dataclass, field

import yaml
from yaml.composer import ComposerError

from dr_pipelines.plan.findings import Finding, Level

__all__ = ["Loc", "Source", "read_source"]

Loc = tuple[str | int, ...]

_MAX_DEPTH = 20
_TAG = "tag:yaml.org,2002:"
_ALIAS = "alias"
_LONGEST_SHOWN = 60
_LONGEST_MESSAGE = 500
_UNREADABLE = object()  # fits no field, unlike None
_TRUE = ("yes", "true", "on")


@dataclass
class Source:
    """What was read: the values, and by location the line (from 1), the field's path and what was found there."""

    value: object = None
    lines: dict[Loc, int] = field(default_factory=dict)
    paths: dict[Loc, str] = field(default_factory=dict)
    found: dict[Loc, str] = field(default_factory=dict)
    problems: dict[tuple[Loc, int], Finding] = field(default_factory=dict)

    def refuse(self, loc: Loc, message: str, *, line: int | None = None) -> None:
        """Note an error at `loc`; the first one on its line stands, what follows from it is not said again."""
        known = loc
        while known and known not in self.lines:
            known = known[:-1]
        missing = loc[len(known) :]
        where = ".".join([part for part in (self.paths.get(known, ""), *map(str, missing)) if part])
        place = line or self.lines.get(known, 1)
        finding = Finding(Level.ERROR, where[:_LONGEST_MESSAGE], message[:_LONGEST_MESSAGE], place)
        self.problems.setdefault((loc, place), finding)


class _Loader(yaml.SafeLoader):
    """Composes nodes, with aliases left as they are (they can make a small file huge) and a limit on depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            return yaml.ScalarNode(_ALIAS, f"*{event.anchor}", event.start_mark, event.end_mark)
        if self.depth == _MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ComposerError(None, None, f"nested more than {_MAX_DEPTH} deep", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_source(text: str) -> Source:
    """Read YAML text. What YAML itself refuses, and what no plan may contain, is in `problems`."""
    source = Source()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        source.refuse((), f"not YAML: {said}", line=mark.line + 1 if mark else None)
        return source
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        source.refuse((), f"not YAML: the character {text[error.position]!r} may not stand in it", line=line)
        return source
    if node is None:
        source.refuse((), "the file is empty; expected a recovery plan")
    elif not isinstance(node, yaml.MappingNode):
        source.refuse((), f"found {_found(node)}; expected a mapping that begins with plan_version")
    else:
        source.value = _read(node, (), source)
    return source


def _read(node: yaml.Node, loc: Loc, source: Source) -> object:
    source.lines.setdefault(loc, node.start_mark.line + 1)
    source.paths.setdefault(loc, "")
    source.found[loc] = _found(node)
    if isinstance(node, yaml.MappingNode):
        return _read_mapping(node, loc, source)
    if isinstance(node, yaml.SequenceNode):
        return _read_sequence(node, loc, source)
    return _read_scalar(node, loc, source)


def _read_mapping(node: yaml.MappingNode, loc: Loc, source: Source) -> object:
    values: dict[str, object] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            source.refuse(loc, f"found {_found(key)} as a key; expected a word", line=line)
            continue
        here = (*loc, key.value)
        if key.value in values:
            message = f'the key "{key.value}" is there twice (first on line {source.lines[here]}); expected it once'
            source.refuse(here, message, line=line)
            continue
        source.lines[here] = line
        source.paths[here] = f"{source.paths[loc]}.{key.value}".lstrip(".")
        values[key.value] = _read(value, here, source)
    return values


def _read_sequence(node: yaml.SequenceNode, loc: Loc, source: Source) -> object:
    values = []
    names: set[str] = set()
    for index, item in enumerate(node.value):
        here = (*loc, index)
        name = _name_of(item)
        # A second one of the same name goes by its index, so that a path leads to one line.
        label = name if name and name not in names else str(index)
        names.add(label)
        source.paths[here] = f"{source.paths[loc]}.{label}"
        values.append(_read(item, here, source))
    return tuple(values)


def _name_of(node: yaml.Node) -> str | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "name" and isinstance(value, yaml.ScalarNode) and re.fullmatch(r"[\w-]{1,63}", value.value):
                return str(value.value)
    return None


def _read_scalar(node: yaml.Node, loc: Loc, source: Source) -> object:
    kind = node.tag.removeprefix(_TAG)
    if kind == "str":
        return node.value
    if kind == "bool":
        return node.value.lower() in _TRUE
    # Octal, binary and base 60 are left out: nobody means them.
    if kind == "int" and re.fullmatch(r"0|-?[1-9][0-9]{0,17}", node.value):
        return int(node.value)
    if kind == "null":
        source.refuse(loc, "found nothing; expected a value, or the key left out")
    if kind == _ALIAS:
        source.refuse(loc, f"found the alias {node.value}; expected the value written out")
    return _UNREADABLE


def _found(node: yaml.Node) -> str:
    """What stands there, in words: a person may have meant something else than YAML makes of it."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    kind = node.tag.removeprefix(_TAG)
    text = node.value if len(node.value) <= _LONGEST_SHOWN else f"{node.value[:_LONGEST_SHOWN]}..."
    match kind:
        case "str":
            return f'"{text}"'
        case "null":
            return "nothing"
        case "bool":
            return f"{text}, which YAML reads as {str(text.lower() in _TRUE).lower()} (quotes make it text)"
        case "int" | "float" if ":" in text:
            return f"{text}, which YAML reads as a number in base 60"
        case "int" | "float":
            return f"{text}, which YAML reads as a number"
        case "timestamp":
            return f"{text}, which YAML reads as a date"
    return f"{text} with the tag {kind}"
