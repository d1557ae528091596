"""Stack traces as the runtimes write them stay with the line that reports them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar import logs
from sidecar._errors import ConfigError
from sidecar.logs import pipeline
from sidecar.logs.input.framing import Multiline, MultilineGrouper
from sidecar.logs.input.stack_traces import LANGUAGES

TRACES = {
    "java": """\
java.lang.IllegalStateException: no
\tat com.acme.Shop.sell(Shop.java:12)
\tat java.base/java.lang.Thread.run(Thread.java:840)
\tSuppressed: java.io.IOException: close
\t\tat com.acme.Shop.close(Shop.java:30)
Caused by: org.postgresql.util.PSQLException: connection refused
\tat org.postgresql.Driver.connect(Driver.java:1)
\t... 5 more
""",
    "python": """\
Traceback (most recent call last):
  File "/app/a.py", line 3, in f
    g()
requests.exceptions.ConnectTimeout: no route

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/app/a.py", line 5, in <module>
    f()
    ~^^
ValueError: x
""",
    "go": """\
panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x47b5a1]

goroutine 34 [running]:
net/http.(*conn).serve.func1()
\t/usr/local/go/src/net/http/server.go:1868 +0xb9
panic({0x6a8e40?, 0x8b9d30?})
\t/usr/local/go/src/runtime/panic.go:920 +0x270
main.(*Shop[...]).sell(0xc0000b4000, {0x7a4d98, 0xc0000a0000})
\t/app/main.go:10 +0x1d
created by net/http.(*Server).Serve in goroutine 1
\t/usr/local/go/src/net/http/server.go:3086 +0x5cb
exit status 2
""",
    "node": """\
/app/index.js:3
    throw new TypeError("x");
    ^

TypeError [ERR_INVALID_ARG]: x
    at Object.<anonymous> (/app/index.js:3:9)
    at node:internal/main/run_main_module:28:49 {
  code: 'ERR_INVALID_ARG'
}

Node.js v18.13.0
""",
    "dotnet": """\
System.InvalidOperationException: no
 ---> System.IO.IOException: disk
   at Acme.Shop.Sell() in /src/Shop.cs:line 12
   --- End of inner exception stack trace ---
   at Acme.Program.Main(String[] args)
""",
    "ruby": """\
\x20\x20
NoMethodError (undefined method `x' for nil:NilClass):
\x20\x20
app/models/shop.rb:12:in `sell'
actionpack (7.0.4) lib/action_controller/base.rb:6:in `send_action'
/usr/lib/ruby/3.1.0/monitor.rb:202:in 'synchronize'
app.rb:3:in `rescue in sell': no (Shop::Closed)
\tfrom app.rb:1:in `sell'
\tfrom app.rb:7:in `<main>'
app.rb:2:in `sell': disk (IOError)
\tfrom app.rb:7:in `<main>'
""",
}
"""As the code that prints them has it; for go, node, java and python see the tests that run them, too.

java: Throwable.printStackTrace, https://github.com/openjdk/jdk/blob/master/src/java.base/share/classes/java/lang/Throwable.java
python: https://github.com/python/cpython/blob/main/Lib/traceback.py
go: https://github.com/golang/go/blob/master/src/runtime/traceback.go and panic.go; `exit status` is of `go run`
node: https://nodejs.org/api/errors.html
dotnet: Exception.ToString, https://github.com/dotnet/runtime/blob/main/src/libraries/System.Private.CoreLib/src/System/Exception.cs
    (`InnerExceptionPrefix`, three blanks before `Exception_EndOfInnerExceptionStack`)
ruby: Rails' `log_error`, https://github.com/rails/rails/blob/main/actionpack/lib/action_dispatch/middleware/debug_exceptions.rb,
    and the interpreter with a cause, https://github.com/ruby/ruby/blob/master/eval_error.c
"""


def records(rule: Multiline, text: str) -> list[str]:
    data = text.encode()
    cut = MultilineGrouper(rule).group(data, final=True)
    assert cut is not None
    assert cut.starts is not None
    ends = [*cut.starts[1:], len(data)]
    return [data[a:b].decode() for a, b in zip(cut.starts, ends, strict=True)]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("rule", ["preset", "all", r"^\S", r"^2026-"])
def test_a_stack_trace_stays_with_the_line_that_reports_it(language: str, rule: str) -> None:
    """By its preset, by that of all languages, and by the rule that every manual shows."""
    before, report, after = (f"2026-11-20 10:00:0{n} INFO main.main started\n" for n in range(3))
    given = {"preset": language, "all": "stack_traces"}.get(rule, rule)
    whole = report + TRACES[language]
    assert records(pipeline.multiline(given), before + whole + after) == [before, whole, after]


def test_a_traceback_of_this_python_is_one_record() -> None:
    """Not from memory: as the interpreter itself writes it, with a cause and a group."""
    program = "try:\n  1/0\nexcept Exception as e:\n  raise ExceptionGroup('g', [OSError(2, 'x')]) from e\n"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # fmt: skip
    text = "INFO before\n" + run.stderr + "INFO after\n"
    assert run.stderr.count("\n") > 8
    assert records(logs.stack_traces("python"), text) == [
        "INFO before\n" + run.stderr,
        "INFO after\n",
    ]


CRASHES = {
    "go": (
        "main.go",
        """\
package main

import ("errors"; "fmt"; "sync")

type shop[T any] struct{ stock map[string]T }

func (s *shop[T]) sell(name string, n T) { s.stock[name] = n }

func main() {
	defer func() { panic(fmt.Errorf("again: %w", errors.New(fmt.Sprint(recover())))) }()
	var group sync.WaitGroup
	group.Add(1)
	go func() { defer group.Done(); select {} }()
	(&shop[int]{}).sell("x", 1)
	group.Wait()
}
""",
    ),
    "node": (
        "main.js",
        """\
class ShopError extends Error {}
const low = () => { throw new RangeError("low", { cause: Object.assign(new Error("disk"), { code: "EIO" }) }); };
Promise.resolve().then(() => {
  try { low(); } catch (error) { throw new AggregateError([error, new ShopError("shop")], "all of it"); }
});
""",
    ),
    "java": (
        "Main.java",
        """\
public class Main {
    static class Closing implements AutoCloseable {
        public void close() throws Exception { throw new java.io.IOException("close"); }
    }
    static void low(int left) { if (left == 0) throw new IllegalArgumentException("low"); low(left - 1); }
    public static void main(String[] args) throws Exception {
        try (Closing one = new Closing()) {
            try { low(3); } catch (IllegalArgumentException e) { throw new IllegalStateException("no", e); }
        }
    }
}
""",
    ),
}
"""Programs that end with what their runtime says of an error: nested, with causes and more than one."""


#: Only go is installed by `.ci/run`; the others are large, and are tried where they are there.
RUNTIMES = [name for name in CRASHES if name == "go" or shutil.which(name)]


@pytest.mark.parametrize("language", RUNTIMES)
def test_what_the_runtime_itself_writes_is_one_record(language: str, tmp_path: Path) -> None:
    """Not from memory, as of Python above."""
    command = ["go", "run"] if language == "go" else [language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    name, program = CRASHES[language]
    (tmp_path / name).write_text(program)
    run = subprocess.run([*command, name], cwd=tmp_path, capture_output=True, text=True, check=False)  # fmt: skip
    assert run.returncode
    assert run.stderr.count("\n") > 8, run.stderr
    before, *found, after = records(
        logs.stack_traces(language), f"INFO before\n{run.stderr}INFO after\n"
    )
    # A trace that nothing reports joins the line before; `Exception in thread "main"` reports it.
    assert "".join([before, *found]) == f"INFO before\n{run.stderr}"
    assert found == ([run.stderr] if language == "java" else [])
    assert after == "INFO after\n"


def test_a_rule_of_ones_own_may_say_what_continues_a_record() -> None:
    """Beside what begins one: RE2 has no look-ahead to say `not Caused by`."""
    rule = pipeline.multiline({"start": r"^\S", "continuation": "^(?:Caused by|and):"})
    assert records(rule, "a\n b\nCaused by: c\nd\nand: e\n") == [
        "a\n b\nCaused by: c\n",
        "d\nand: e\n",
    ]
    explicit = pipeline.multiline("^(?:Traceback|[0-9])")
    assert records(explicit, "1\nTraceback (most recent call last):\n") == ["1\n", "Traceback (most recent call last):\n"]  # fmt: skip


@pytest.mark.parametrize("wrong", ["jawa,go", {"end": "x", "continuation": "y"}, {"preset": "cobol"}, {"preset": "go", "end": "x"}, {}])  # fmt: skip
def test_a_rule_that_cannot_work_is_refused(wrong: object) -> None:
    """A list of presets with a slip in it is no pattern."""
    with pytest.raises((ConfigError, ValueError)):
        pipeline.multiline([*wrong.split(",")] if isinstance(wrong, str) else wrong)
