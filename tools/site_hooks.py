"""What MkDocs does not do by itself: pages from outside of docs/, links out of it, tables that are made from the code."""  # noqa: INP001 (a tool, not a package)

from __future__ import annotations

import hashlib
import posixpath
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))

reference = import_module("reference")  # beside this file

OUTSIDE = {
    **{
        name: name
        for name in (
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "RELEASING.md",
            "SECURITY.md",
            "UPGRADING.md",
        )
    },
    "README.md": "index.md",
    "charts/sidecar/README.md": "chart.md",
    **{
        f"examples/{path.parent.name}/README.md": f"examples/{path.parent.name}.md"
        for path in sorted((ROOT / "examples").glob("*/README.md"))
    },
}
"""Pages of the repository that are pages of the site, and where. The README has its counterpart in docs/."""
_LINK = re.compile(
    r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))|(^\[[^]]+\]: )([^\s#:]+)(#\S*)?$", re.MULTILINE
)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside."""
    from mkdocs.structure.files import File

    for path, site in OUTSIDE.items():
        if site != "index.md":
            files.append(File.generated(config, site, abs_src_path=str(ROOT / path)))
    return files


def on_config(config: Any) -> Any:
    """Draw pictures while the site is built: a page needs no script for them, and no other server."""
    (fence,) = config.mdx_configs["pymdownx.superfences"]["custom_fences"]
    fence["format"] = _picture
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make links as they stand in the repository into links of the site, or to the source; fill in the tables."""
    path = page.file.src_uri
    origins = {site: origin for origin, site in OUTSIDE.items() if site != "index.md"}
    here = posixpath.dirname(origins.get(path, f"docs/{path}"))
    if path == "reference/log-events.md":
        markdown = reference.log_events_page(markdown)
    if path == "reference/api.md":
        markdown = re.sub(r"<!-- names of (\S+) -->", _names, markdown)

    def resolved(target: str) -> str:
        found = posixpath.normpath(posixpath.join(here, target))
        site = OUTSIDE.get(found) or OUTSIDE.get(f"{found}/README.md")
        if site is None and found.startswith("docs/"):
            site = found.removeprefix("docs/")
        if site is not None and files.get_file_from_path(site) is not None:
            return posixpath.relpath(site, posixpath.dirname(path) or ".")
        if (ROOT / found).exists():
            return f"{config.repo_url.rstrip('/')}/blob/main/{found}"
        return target  # strict MkDocs names it

    def replaced(match: re.Match[str]) -> str:
        begin, target, end, begin_of_reference, reference_target, anchor = match.groups()
        if begin:
            return f"{begin}{resolved(target)}{end}"
        return f"{begin_of_reference}{resolved(reference_target)}{anchor or ''}"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        _fence(part) if part.startswith("```") else _bars(_LINK.sub(replaced, part))
        for part in parts
    )


def _bars(text: str) -> str:
    """Return text whose `|` in code stand without the backslash that a table of GitHub needs, and that this one would show."""
    return re.sub(r"`[^`\n]+`", lambda code: code[0].replace("\\|", "|"), text)


def _names(match: re.Match[str]) -> str:
    """Return what mkdocstrings makes the section of each public name of a module of."""
    module = match[1]
    return "\n\n".join(
        f"::: {module}.{name}" for name in import_module(module).__all__ if not name.startswith("_")
    )


def _picture(source: str, *_: object, **__: object) -> str:
    """Return what a block of Mermaid says as SVG, with identifiers that are its own on the page."""
    import mmdr

    name = f"picture-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    return f'<div class="picture">{mmdr.render(source).svg().replace("merman", name)}</div>'


def _fence(block: str) -> str:
    """Return a block without the words for the tests after its language (`cluster`, `values`), which the site does not know."""
    head, _, rest = block.partition("\n")
    return re.sub(r"^(```\w+)(?: \w+)+$", r"\1", head) + "\n" + rest
