"""`sidecar check`: a probe for images without curl."""

from __future__ import annotations

import click

from sidecar.cli import declare, escape, param_types
from sidecar.cli.impl import http_probe


@declare.command("check")
@click.argument("url")
@declare.option(
    "--timeout",
    type=param_types.positive_seconds,
    default=1.0,
    help="Seconds until the answer must be there.",
)
@declare.option(
    "--ca",
    type=param_types.EXISTING_FILE,
    help="Authority (PEM) that must have signed the server's certificate.",
)
@declare.option("--insecure", is_flag=True, help="Accept any certificate.")
def command(url: str, timeout: float, ca: str | None, insecure: bool) -> int:
    """Ask URL, and exit with 0 if it answers with 2xx, else with 1.

    URL is http://…, https://… or unix:/run/sidecar.sock:/readyz (socket, colon, path).
    Redirects are not followed. Certificates are verified, except those of servers on this machine
    when no --ca is given: an address of the loopback interface cannot be anybody else's.
    """
    try:
        answer = http_probe.get(_target(url), timeout=timeout, ca=ca, insecure=insecure)
    except (OSError, http_probe.ProbeError) as error:
        return _failed(f"no answer from {url}: {_why(error, timeout)}")
    if 200 <= answer.status < 300:
        click.echo(f"{answer.status} {answer.reason}".rstrip())
        return 0
    return _failed(f"{url} answered {answer.status}{_detail(answer)}")


def _target(url: str) -> http_probe.Target:
    try:
        return http_probe.parse(url)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error


def _failed(message: str) -> int:
    click.echo(f"sidecar: {escape.one_line(message)}", err=True)
    return 1


def _why(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {timeout:g} s (give it more by --timeout)"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there (is the server started, and is this its port?)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


def _detail(answer: http_probe.ProbeResponse) -> str:
    """Return what a problem (RFC 9457) or a health report says, else the beginning of a text."""
    if "location" in answer.headers:
        return f", a redirect to {answer.headers['location']}; ask there"
    text = answer.body.decode(errors="replace").strip()
    if "json" in answer.headers.get("content-type", ""):
        return _of_json(text)
    return f": {text.splitlines()[0][:200]}" if text and text.isprintable() else ""


def _of_json(text: str) -> str:
    import json

    try:
        said = json.loads(text)
    except ValueError:
        return ""
    if not isinstance(said, dict):
        return f": {said}"
    checks = said.get("checks")
    if isinstance(checks, dict):
        wrong = [f"{name}: {state}" for name, state in checks.items() if state != "ok"]
        if wrong:
            return ": " + "; ".join(wrong)
    detail = said.get("detail") or said.get("title")
    return f": {detail}" if detail else ""
