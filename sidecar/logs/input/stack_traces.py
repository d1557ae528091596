"""Which lines belong to a stack trace, by language: what continues a record, whatever begins one.

Most traces begin with a line that is not indented (`java.io.IOException: …`, `Traceback (most recent call last):`),
so "what begins with a blank belongs to the line before" cuts them apart.
A trace belongs to the line that reports it; one that nobody reports (Go's `panic:`) joins the line before it, too.
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
    """Return the rule that keeps the stack traces of these languages together, those of all by default.

    Every line that does not go on with a trace begins a record, or, with `start`, each of them that matches it.

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
    r"""Tell whether a pattern says no more than that a line is not indented: `^\S` cuts traces apart.

    >>> takes_any_line(r"^\S"), takes_any_line(r"^\d{4}-")
    (True, False)
    """
    pattern = regex.compile_pattern(start)
    return all(pattern.found(one) for one in ("a", "Z", "0", "[", "{", "<")) and not pattern.found(
        " a"
    )
