"""Draw the pictures of docs/architecture.md from the imports in the code: `python tools/architecture.py`."""  # noqa: INP001 (a tool, not a package)

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
BEGIN = "<!-- pictures: written by tools/architecture.py -->\n"
END = "<!-- end of the pictures -->\n"
PACKAGE = "sidecar"
DRAWN = {
    "sidecar": "The packages",
    "sidecar.http": "Inside `http/`",
    "sidecar.volume": "Inside `volume/`",
    "sidecar.logs": "Inside `logs/`",
    "sidecar.cli": "Inside `cli/`",
}
LEFT_OUT = {"sidecar._errors", "sidecar._version", "sidecar.testing", "sidecar.__main__"}
"""What every package may import, and what only lists the names of others."""

Graph = dict[str, set[str]]


def page(text: str) -> str:
    """Return the page with its pictures as the code is now; everything else stays."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} has lost its marks: {BEGIN}{END}")
    return head + BEGIN + pictures() + END + tail


def pictures() -> str:
    """Return a Mermaid diagram for each of `DRAWN`."""
    code = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    return "".join(
        f"\n{title}:\n\n{diagram(code, container)}\n" for container, title in DRAWN.items()
    )


def diagram(code: grimp.ImportGraph, container: str) -> str:
    """Return the imports among the children of one package, as a Mermaid diagram."""
    graph = reduced(imports(code, container))
    linked = set(graph) | {target for targets in graph.values() for target in targets}
    lines = [
        f'    {node(child)}["{label(code, child)}"]'
        for child in sorted(children(code, container))
        if child in linked
    ]
    lines += [
        f"    {node(source)} --> {node(target)}"
        for source in sorted(graph)
        for target in sorted(graph[source])
    ]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def children(code: grimp.ImportGraph, container: str) -> set[str]:
    """Return the modules and packages directly in a package, without `LEFT_OUT`."""
    return set(code.find_children(container)) - LEFT_OUT


def imports(code: grimp.ImportGraph, container: str) -> Graph:
    """Return which children of a package import which others; a child is itself and everything in it."""
    graph: Graph = {}
    inside = {
        module: child
        for child in children(code, container)
        for module in {child, *code.find_descendants(child)}
    }
    for module, child in inside.items():
        for imported in code.find_modules_directly_imported_by(module):
            target = inside.get(imported, child)
            if target != child:
                graph.setdefault(child, set()).add(target)
    return graph


def reduced(graph: Graph) -> Graph:
    """Return the graph without the arrows that a longer way implies.

    Raises:
        ValueError: the imports form a circle, so there is no such graph.
    """
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise ValueError(f"imports form a circle: {' -> '.join(error.args[1])}") from error
    reached: Graph = {}
    for one in order:  # what is imported comes before what imports it
        targets = graph.get(one, set())
        reached[one] = targets.union(*(reached[target] for target in targets))
    return {
        one: {target for target in targets if not any(target in reached[via] for via in targets)}
        for one, targets in graph.items()
    }


def node(module: str) -> str:
    """Return the identifier of a module in a diagram."""
    return module.replace(".", "_")


def label(code: grimp.ImportGraph, module: str) -> str:
    """Return the path of a module as a reader looks for it: `http/apps/`, `http/problems`."""
    path = module.removeprefix(f"{PACKAGE}.").replace(".", "/")
    return f"{path}/" if code.find_children(module) else path


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
