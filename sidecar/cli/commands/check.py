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
    help="Maximum seconds until the response.",
)
@declare.option(
    "--ca",
    type=param_types.EXISTING_FILE,
    help="CA certificate (PEM) to verify the server.",
)
@declare.option("--insecure", is_flag=True, help="Accept any certificate.")
def command(url: str, timeout: float, ca: str | None, insecure: bool) -> int:
    """Request URL, and exit with 0 if the status is 2xx, otherwise with 1.

    URL is http://…, https://… or unix:/run/sidecar.sock:/readyz (socket, colon, path).
    Redirects are not followed. Certificates are verified, except those of servers on this machine
    when no --ca is given: an address of the loopback interface always belongs to this machine.
    """
    try:
        answer = http_probe.get(_target(url), timeout=timeout, ca=ca, insecure=insecure)
    except (OSError, http_probe.ProbeError) as error:
        return _failed(f"no answer from {url}: {_why(error, timeout)}")
    if 200 <= answer.status < 300:
        click.echo(f"{answer.status} {answer.reason}".rstrip())
        return 0
    return _failed(f"{url} answered {answer.status}{_detail(answer)}")


def _target(url: str) -> http_probe.ProbeTarget:
    try:
        return http_probe.parse(url)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error


def _failed(message: str) -> int:
    click.echo(f"sidecar: {escape.one_line(message)}", err=True)
    return 1


def _why(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no response within {timeout:g} s (--timeout sets the limit)"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused (is the server started, and is this its port?)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


def _detail(answer: http_probe.ProbeResponse) -> str:
    """Return the detail of a problem (RFC 9457) or a health report, or the first line of a text."""
    if "location" in answer.headers:
        return f", a redirect to {answer.headers['location']}; ask there"
    text = answer.body.decode(errors="replace").strip()
    if "json" in answer.headers.get("content-type", ""):
        return _json_detail(text)
    return f": {text.splitlines()[0][:200]}" if text and text.isprintable() else ""


def _json_detail(text: str) -> str:
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
