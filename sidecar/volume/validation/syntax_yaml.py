"""Check and load YAML from the events of PyYAML's parser, without constructing Python objects.

All tags are accepted (`!Ref`, `!vault`), as are `- =` and impossible dates: the consumer decides what they mean.
Aliases and merge keys (`<<`) that expand to too much are refused during parsing, before they take time or memory
(https://en.wikipedia.org/wiki/Billion_laughs_attack).
PyYAML behaves the same with and without libyaml here, because its composer and constructor, which differ, are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sidecar import _errors

EXTRA: Final = "pip install 'podsidecar[schema]'"
"""The command that installs PyYAML and jsonschema."""

MAX_ALIASED: Final = 200_000
"""Limit of the values that all aliases of a text together expand to, about 20 MB of dictionaries."""
_CHARS_PER_NODE: Final = 32
"""Each 32 characters of a scalar count as one more value towards `MAX_ALIASED`."""
MAX_DEPTH: Final = 200
"""Levels of nesting. libyaml would crash the process at some hundred thousand."""

_TAG = "tag:yaml.org,2002:"


class _Frame:
    """A sequence or mapping during parsing. `weight` is the number of values in it with aliases expanded."""

    __slots__ = (
        "anchor",
        "is_mapping",
        "items",
        "key",
        "key_is_next",
        "merged",
        "values",
        "weight",
    )

    def __init__(self, anchor: str | None, *, is_mapping: bool) -> None:
        self.anchor = anchor
        self.is_mapping = is_mapping
        self.weight = 1
        self.items: list[Any] = []
        self.values: dict[str, Any] = {}
        self.merged: list[Any] = []
        self.key: Any = None
        self.key_is_next = True

    def value(self) -> Any:
        if not self.is_mapping:
            return self.items
        found: dict[str, Any] = {}
        for one in reversed(self.merged):
            found |= one
        return found | self.values


def check(text: str) -> None:
    """Check the syntax of a text.

    Raises:
        ValueError: it is not YAML, or its aliases expand to too much; the message has line and column.
        RecursionError: it is nested deeper than `MAX_DEPTH`.
    """
    _YamlReader(construct=False).read(text)


def load(text: str) -> list[Any]:
    """Return the documents of a text as JSON values: unknown tags are ignored, dates are strings.

    Raises:
        ValueError, RecursionError: as `check`; also for values that JSON does not have.
    """
    return _YamlReader(construct=True).read(text) or [None]


def yaml() -> Any:
    """Import PyYAML. Raises `ConfigError` if it is not installed."""
    try:
        import yaml
    except ImportError as error:
        raise _errors.ConfigError(f"YAML needs the package PyYAML: {EXTRA}") from error
    return yaml


def loader() -> Any:
    """Return the loader class with the parser of libyaml, or the slow one if PyYAML was built without it."""
    return getattr(yaml(), "CSafeLoader", yaml().SafeLoader)


def is_fast() -> bool:
    """Whether the parser is that of libyaml."""
    return hasattr(yaml(), "CSafeLoader")


class _YamlReader:
    """Reads the events of a text in one pass, with a stack instead of recursion."""

    def __init__(self, *, construct: bool) -> None:
        self._scalar: Callable[[Any], Any] = _Scalars().value if construct else lambda _: None
        self._construct = construct
        self._aliased = 0
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int] | None] = {}
        """The value and weight of each anchor; None until its node is complete."""
        self._documents: list[Any] = []

    def read(self, text: str) -> list[Any]:
        library = yaml()
        try:
            for event in library.parse(text, loader()):
                self._take(event, library.events)
        except library.MarkedYAMLError as error:
            problem = error.problem or error.context
            raise ValueError(f"{problem}{_place(error.problem_mark)}") from error
        except library.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error
        return self._documents

    def _take(self, event: Any, events: Any) -> None:
        if isinstance(event, events.ScalarEvent):
            value, weight = self._scalar(event), 1 + len(event.value) // _CHARS_PER_NODE
            if event.anchor is not None:
                self._anchors[event.anchor] = value, weight
            self._add(value, weight, event)
        elif isinstance(event, events.CollectionStartEvent):
            if len(self._stack) >= MAX_DEPTH:
                raise RecursionError
            is_mapping = isinstance(event, events.MappingStartEvent)
            self._stack.append(_Frame(event.anchor, is_mapping=is_mapping))
            if event.anchor is not None:
                self._anchors[event.anchor] = None
        elif isinstance(event, events.CollectionEndEvent):
            frame = self._stack.pop()
            value = frame.value() if self._construct else None
            if frame.anchor is not None:
                self._anchors[frame.anchor] = value, frame.weight
            self._add(value, frame.weight, event)
        elif isinstance(event, events.AliasEvent):
            self._add(*self._aliased_by(event), event)
        elif isinstance(event, events.DocumentStartEvent):
            self._anchors.clear()

    def _aliased_by(self, event: Any) -> tuple[Any, int]:
        """Return value and weight of an alias, and add its weight to the total, before its value is used."""
        if event.anchor not in self._anchors:
            raise ValueError(f"found undefined alias {event.anchor!r}{_place(event.start_mark)}")
        found = self._anchors[event.anchor]
        if found is None:
            raise ValueError(
                f"an alias refers to the value that it is a part of{_place(event.start_mark)}"
            )
        self._aliased += found[1]
        if self._aliased > MAX_ALIASED:
            raise ValueError(
                f"its aliases unfold to more than {MAX_ALIASED} values, or their size in text"
            )
        return found

    def _add(self, value: Any, weight: int, event: Any) -> None:
        """Add a complete value to the enclosing sequence or mapping, or to the documents."""
        frame = self._stack[-1] if self._stack else None
        is_key = frame is not None and frame.is_mapping and frame.key_is_next
        if value is _Merge and not is_key:
            value = "<<"
        if frame is None:
            self._documents.append(value)
            return
        frame.weight += weight
        if not self._construct:
            return
        if not frame.is_mapping:
            frame.items.append(value)
        elif is_key:
            frame.key_is_next = False
            frame.key = _key(value, event)
        else:
            frame.key_is_next = True
            if frame.key is _Merge:
                frame.merged += _to_merge(value, event)
            else:
                frame.values[frame.key] = value


class _Merge:
    """Marks the merge key `<<`."""


class _Scalars:
    """Resolves scalars by the rules of YAML 1.1 as PyYAML implements them."""

    def __init__(self) -> None:
        library = yaml()
        self._resolver = library.resolver.Resolver()
        self._node = library.ScalarNode
        maker = library.constructor.SafeConstructor()
        self._makers = {
            f"{_TAG}null": maker.construct_yaml_null,
            f"{_TAG}bool": maker.construct_yaml_bool,
            f"{_TAG}int": maker.construct_yaml_int,
            f"{_TAG}float": maker.construct_yaml_float,
            f"{_TAG}merge": lambda _: _Merge,
        }

    def value(self, event: Any) -> Any:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._resolver.resolve(self._node, event.value, event.implicit)
        make = self._makers.get(tag)
        if make is None:
            return event.value
        try:
            return make(self._node(tag, event.value))
        except (ValueError, KeyError, IndexError) as error:
            what = tag.removeprefix(_TAG)
            raise ValueError(
                f"{event.value[:80]!r} is no {what}{_place(event.start_mark)}"
            ) from error


def _key(value: Any, event: Any) -> Any:
    """Return a key as a string, as JSON requires."""
    if isinstance(value, str) or value is _Merge:
        return value
    if isinstance(value, dict | list):
        raise ValueError(  # noqa: TRY004 (the value is of no wrong type, the content is no JSON)
            f"a schema cannot validate it: a key is a sequence or a mapping{_place(event.start_mark)}"
        )
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _to_merge(value: Any, event: Any) -> list[dict[str, Any]]:
    """Return the mappings that a merge key names.

    Raises:
        ValueError: one of them is not a mapping.
    """
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in several):
        raise ValueError(
            f"what is merged by << must be a mapping, or several{_place(event.start_mark)}"
        )
    return several


def _place(mark: Any) -> str:
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
