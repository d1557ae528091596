"""YAML as a stream of events: what is valid, what it means to a schema, and that nothing multiplies."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
import yaml

from sidecar.volume.validation import syntax_yaml


@pytest.fixture(params=["libyaml", "pure"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both parsers of PyYAML: the one in C, and the one that is left where it was built without libyaml."""
    kind: str = request.param
    if kind == "libyaml" and not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML without libyaml")
    if kind == "pure":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    return kind


NAMES = "abcdefghij"
BOMBS = {
    "aliases": "\n".join(
        ["a: &a [1,1,1,1,1,1,1,1,1,1]"]
        + [f"{n}: &{n} [{','.join(['*' + p] * 10)}]" for p, n in pairwise(NAMES)]
    ),
    # As PyYAML 6.0.1 to 6.0.3 flatten it, each level has nine times the keys of the one before.
    "merges-of-merges": "\n".join(
        ["a0: &a0 {k: v, k2: v}"]
        + [f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 8)]
    ),
    "texts": f"a: &a {'x' * 100_000}\nb: [{','.join(['*a'] * 100)}]",
    "merges": "a: &a {"
    + ",".join(f"k{n}: 1" for n in range(1000))
    + "}\n"
    + "\n".join(f"b{n}: {{<<: *a}}" for n in range(300)),
}


@pytest.mark.parametrize("read", [syntax_yaml.check, syntax_yaml.load])
@pytest.mark.parametrize("bomb", BOMBS)
def test_what_multiplies_is_refused_before_it_does(
    parser: str, bomb: str, read: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """46 KB took 127 MiB, and 385 bytes 13 s with the PyYAML of the image: counted before anything is made of it."""
    made, value = [0], syntax_yaml._Frame.value

    def count(frame: syntax_yaml._Frame) -> Any:
        made[0] += sum(map(len, frame.merged)) + 1
        return value(frame)

    monkeypatch.setattr(syntax_yaml._Frame, "value", count)
    tracemalloc.start()
    with pytest.raises(ValueError, match="unfold to more than 200000 values"):
        read(BOMBS[bomb])  # type: ignore[operator]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made[0] < syntax_yaml.MAX_ALIASED
    assert peak < 30 << 20


def test_a_text_without_aliases_may_hold_any_number_of_values(parser: str) -> None:
    """What is limited is what multiplies, not what is there."""
    lines = 210_000 if parser == "libyaml" else 2_000
    syntax_yaml.check("- 1\n" * lines)


def test_an_anchor_ends_with_its_document(parser: str) -> None:
    """YAML 1.2 section 7.1: an alias to an anchor that was not met before in its document is an error."""
    with pytest.raises(ValueError, match=r"undefined alias 'a' \(line 3, column 1\)"):
        syntax_yaml.check("&a [1]\n---\n*a\n")


def test_an_alias_in_its_own_value_is_refused(parser: str) -> None:
    """Whoever walks through it never comes to an end; also through a mapping."""
    for text in ("&a [*a]", "&a {b: [*a]}", "&a {<<: *a}"):
        with pytest.raises(ValueError, match="part of"):
            syntax_yaml.check(text)


VALUES = [
    ("a: &x {k: 1, z: 2}\nb: {<<: *x, k: 3}\nc: {<<: [*x, {k: 9, y: 0}]}", None),
    ("[yes, No, ~, null, 0x1f, 0o7, 1_000, 1:30, 1.5, .5e+3, 'yes', \"1\", abc]", None),
    ("a: &x 1\nb: *x\n---\n- |\n  text\n- >\n  folded\n  text\n", None),
    ("!!str 1: !!int '3'\n? !!str a\n: !!float 2", None),
    ("v: !Ref Other\nl: !Sub [a, 1]\nm: !x {y: z}", [{"v": "Other", "l": ["a", 1], "m": {"y": "z"}}]),
    ("- =\n- <<\n- 2024-13-45\n- 2026-01-01", [["=", "<<", "2024-13-45", "2026-01-01"]]),
    ("1: a\ntrue: b\n~: c\n1.5: d", [{"1": "a", "true": "b", "null": "c", "1.5": "d"}]),
    ("", [None]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), VALUES)
def test_a_schema_sees_the_values_that_pyyaml_makes(
    parser: str, text: str, wanted: list[object] | None
) -> None:
    """Those of `safe_load` where it has any; else what the content holds without its tag, as a text where JSON has no kind."""
    assert syntax_yaml.load(text) == (list(yaml.safe_load_all(text)) if wanted is None else wanted)


@pytest.mark.parametrize("text", ["? [a]\n: b", "? {a: b}\n: c", "<<: 5", "!!int abc", "!!bool 5"])
def test_what_json_cannot_hold_is_refused_only_for_a_schema(parser: str, text: str) -> None:
    """It is YAML; a schema cannot validate it, and the place is told."""
    syntax_yaml.check(text)
    with pytest.raises(ValueError, match="line 1"):
        syntax_yaml.load(text)
