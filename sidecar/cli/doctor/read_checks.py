"""Checks for readers: the layout of the files, and whether they can be read."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar import _errors
from sidecar.cli.doctor.report import Finding, Target, format_amount, reason
from sidecar.fs import layout, openat
from sidecar.volume.content import loader
from sidecar.volume.content.scan_result import ScanResult
from sidecar.volume.validation import signatures
from sidecar.volume.validation.signature_filter import SignatureFilter
from sidecar.volume.validation.signatures import Verifier

_MAX_NAMES_SHOWN = 5


def file_layout(target: Target) -> Iterator[Finding]:
    """The layout of the files, which shows who publishes here."""
    generation = layout.link_target(target.fd, layout.DATA)
    if generation is None:
        links = [n for n in target.entries if not n.startswith(".") and _is_link(target.fd, n)]
        if ".worktrees" in target.entries:
            text = f"a volume of git-sync; name its link: {', '.join(sorted(links)) or 'not there yet'}"
        else:
            files = sum(not n.startswith(layout.HIDDEN) for n in target.entries)
            text = f"loose files, {files} {'entry' if files == 1 else 'entries'}"
        yield Finding("layout", "ok", text)
    elif generation.startswith(layout.GENERATION):
        yield Finding("layout", "ok", f"a set published by sidecar, generation {generation}")
    else:
        yield Finding(
            "layout",
            "ok",
            f"a ConfigMap, Secret or projected volume, written by kubelet ({generation})",
        )
        yield Finding(
            "layout",
            "wrong",
            "kubelet owns this volume and overwrites what others publish in it",
            "publish to a volume of its own, such as an emptyDir",
            roles=("write",),
        )
    if layout.HISTORY in target.entries:
        yield Finding("history", "ok", f"kept under {layout.HISTORY}")


def content(target: Target) -> Iterator[Finding]:
    """Read it as a reader does, with the same refusals."""
    undecodable = [n for n in target.entries if not layout.is_text(n)]
    if undecodable and target.name is None:
        yield Finding(
            "names",
            "note",
            f"{len(undecodable)} of the names are not UTF-8 and are left out",
            "rename them",
            roles=("read",),
        )
    try:
        if target.name is None:
            scan = loader.read_directory(
                target.fd, target.directory, limit=target.max_size, before=None
            )
        else:
            scan = loader.read_file(
                target.fd, target.directory, target.name, limit=target.max_size, before=None
            )
    except _errors.NothingPublished:
        yield Finding("content", "note", "nothing has been published yet")
        return
    except (OSError, _errors.SidecarError) as error:
        yield Finding("content", "wrong", reason(error), roles=("read",))
        return
    problems = list(scan.problems.values())
    for problem in problems[:_MAX_NAMES_SHOWN]:
        yield Finding("content", "wrong", problem, roles=("read",))
    if len(problems) > _MAX_NAMES_SHOWN:
        more = f"{len(problems) - _MAX_NAMES_SHOWN} more files that must not or cannot be read"
        yield Finding("content", "wrong", more, roles=("read",))
    found = scan.snapshot
    files = "one file" if len(found) == 1 else f"{len(found)} files"
    yield Finding("content", "ok", f"{files}, {format_amount(found.size)}, version {found.version}")
    if target.verify_key:
        yield _signature(target, scan)


def _signature(target: Target, scan: ScanResult) -> Finding:
    """Whether one of the keys has signed it."""
    generation = scan.states.generation
    try:
        signed = SignatureFilter(
            target.path,
            Verifier(target.verify_key),
            beside=lambda: signatures.read_list(target.fd, generation or "."),
        )
        verified = signed.verify(scan.snapshot, is_set=generation is not None)
    except _errors.ConfigError as error:
        return Finding("signature", "wrong", str(error), "give a file with public keys")
    if verified.problem is not None:
        return Finding(
            "signature",
            "wrong",
            verified.problem,
            "publish it with its signature, or give the key of who has signed it",
            roles=("read",),
        )
    return Finding("signature", "ok", "a trusted key has signed the content")


def opening() -> Finding:
    if openat.openat2_works():
        return Finding("openat2", "ok", "the kernel itself keeps reads inside the volume")
    return Finding(
        "openat2",
        "ok",
        "not available (kernel before 5.6, or seccomp): paths are walked with a check at each step",
    )


def _is_link(dir_fd: int, name: str) -> bool:
    return layout.link_target(dir_fd, name) is not None
