"""Multiline rules for stack traces, by language: which lines continue a record.

Most traces begin with a line that is not indented (`java.io.IOException: …`, `Traceback (most recent call last):`),
so the rule "an indented line belongs to the line before" splits them.
A trace belongs to the line that reports it; a trace without such a line (Go's `panic:`) is joined to the line before it as well.
"""

from __future__ import annotations

from sidecar._errors import ConfigError
from sidecar.logs import regex
from sidecar.logs.input.framing import Multiline

_INDENTED = r"^\s|^$"
_CONTINUED = {
    # https://docs.oracle.com/en/java/javase/21/docs/api/java.base/java/lang/Throwable.html#printStackTrace()
    "java": r"^(?:Caused by|Suppressed|Wrapped by): |^\.\.\. \d+ |^(?:[\w$]+\.)+[\w$]*(?:Exception|Error|Throwable|Failure|Fault)[\w$]*(?::|\s|$)",
    # https://docs.python.org/3/library/traceback.html
    "python": r"^Traceback \(most recent call last\):|^During handling of the above exception, another|^The above exception was the direct cause"
    r"|^(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit|Iteration|Group|Timeout)(?::|$)|^(?:[a-z_]\w*\.)+[A-Z]\w*(?::|$)",
    # https://pkg.go.dev/runtime#hdr-Environment_Variables (GOTRACEBACK)
    "go": r"^panic(?:: |\()|^fatal error: |^goroutine \d+ .*\[.*\]:$|^\[signal |^\[(?:recovered|originating)|^created by |^exit status \d+$|^runtime stack:$"
    r"|^\.\.\.\s?(?:additional|\d+) frames|^SIG[A-Z]+: |^PC=0x|^r\w+ +0x[0-9a-f]+$"
    r"|^[\w./%@~-]+\.(?:\(\*?[\w\[\]./,* ]+\)\.)?[\w.\[\]/,*-]+\([^()]*\)$",
    # https://nodejs.org/api/errors.html#errorstack
    "node": r"^(?:Uncaught )?[\w$.]*(?:Error|Exception)(?: \[\w+\])?(?::|$)|^[\w./\\:-]+\.[cm]?[jt]sx?:\d+$|^node:[\w/]+:\d+$|^Node\.js v\d|^[}\]]",
    # https://learn.microsoft.com/dotnet/api/system.exception.tostring
    "dotnet": r"^(?:[\w`+]+\.)+[\w`+]*Exception\b|^ ?---",
    # https://docs.ruby-lang.org/en/3.3/Exception.html#method-i-full_message
    "ruby": r"^[^\s:]+(?: \([\w.]+\) [^\s:]+)?:\d+:in [`'\x22]|^(?:[A-Z]\w*::)*[A-Z]\w*(?:Error|Exception|NotFound|Invalid|Timeout)(?: \(|:|$)|^Caus(?:ed by|es):",
}

LANGUAGES = tuple(_CONTINUED)


def stack_traces(*languages: str, start: str | None = None, timeout: float = 1.0) -> Multiline:
    """Return the multiline rule for stack traces of these languages, by default of all.

    Every line that does not continue a trace begins a record; with `start`, only those that match it.

    Raises:
        ConfigError: no such language (`java`, `python`, `go`, `node`, `dotnet`, `ruby`), or no valid pattern.

    >>> stack_traces("java").start is None
    True
    """
    if unknown := set(languages) - set(LANGUAGES):
        raise ConfigError(
            f"no stack traces of {', '.join(sorted(unknown))}: there are {', '.join(LANGUAGES)}"
        )
    wanted = [_CONTINUED[one] for one in languages or LANGUAGES]
    return Multiline(start=start, continuation="|".join([_INDENTED, *wanted]), timeout=timeout)


def takes_any_line(start: str) -> bool:
    r"""Whether a start pattern matches every line that is not indented: `^\S` would split traces.

    >>> takes_any_line(r"^\S"), takes_any_line(r"^\d{4}-")
    (True, False)
    """
    pattern = regex.compile_pattern(start)
    return all(pattern.found(one) for one in ("a", "Z", "0", "[", "{", "<")) and not pattern.found(
        " a"
    )
