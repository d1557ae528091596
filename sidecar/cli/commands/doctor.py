"""`sidecar doctor`: test a volume, and suggest remedies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from sidecar.cli import declare, escape, options, param_types

if TYPE_CHECKING:
    from sidecar.cli.doctor.report import Finding

_SIGNS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "wrong": ("✗", "red")}


@declare.command("doctor")
@options.path("File or directory to check, as the container sees it.")
@declare.option(
    "--for",
    "role",
    type=click.Choice(["read", "write", "both"]),
    default="both",
    help="Role to check the volume for; checks that only concern the other role are left out.",
)
@declare.option(
    "--max-size",
    **options.MAX_SIZE,
    help="Maximum size of a content that writer and readers accept.",
)
@declare.option(
    "--mode",
    type=param_types.mode,
    default="0644",
    help="Permissions that the writer sets on its files.",
)
@declare.option(
    "--group",
    type=param_types.group,
    help="Group that the writer sets on its files, by number or name.",
)
@declare.option(
    "--verify-key",
    **options.VERIFY_KEY,
    help="Public keys (PEM, ed25519) of which one must have signed the content; may be repeated.",
)
@declare.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@options.logging(level="error")
def command(
    *,
    path: str,
    role: Literal["read", "write", "both"],
    max_size: int,
    mode: int,
    group: int | None,
    verify_key: tuple[str, ...],
    as_json: bool,
) -> int:
    """Test the volume at PATH: what works, what does not, and how to fix it.

    Exits with 1 if something is wrong (✗); notes (!) are informational.
    It publishes a test file and a test set under hidden names, and removes them again.
    """
    from sidecar.cli.doctor import report as findings
    from sidecar.cli.doctor import runner

    wanted = set(findings.BOTH if role == "both" else (role,))
    found = []
    for finding in runner.examine(
        path, max_size=max_size, mode=mode, group=group, verify_key=verify_key
    ):
        if wanted & set(finding.roles):
            found.append(finding)
            if not as_json:
                _print(finding)
    wrong = [one for one in found if one.state == "wrong"]
    if as_json:
        _print_json(path, role, found)
    else:
        purpose = {"read": "reading", "write": "writing"}.get(role, "reading and writing")
        sum_up = f"{len(wrong)} thing{'s' * (len(wrong) != 1)} wrong" if wrong else "fit"
        click.echo(f"{path}: {sum_up} for {purpose}")
    return 1 if wrong else 0


def _print(finding: Finding) -> None:
    sign, colour = _SIGNS[finding.state]
    sign = click.style(escape.fit_marks(sign), fg=colour)
    click.echo(f"{sign} {finding.subject:<10} {escape.one_line(finding.text)}")
    if finding.remedy:
        click.echo(f"  {'':<10} {escape.fit_marks('→')} {finding.remedy}")


def _print_json(path: str, role: str, findings: list[Finding]) -> None:
    import json

    report: dict[str, Any] = {
        "path": path,
        "for": role,
        "ok": all(finding.state != "wrong" for finding in findings),
        "findings": [
            {
                "subject": finding.subject,
                "state": finding.state,
                "text": finding.text,
                "remedy": finding.remedy,
                "for": list(finding.roles),
            }
            for finding in findings
        ],
    }
    click.echo(json.dumps(report, indent=2))  # ASCII: any encoding of the output has it
