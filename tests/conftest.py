"""What every test may use: waiting without sleeping, free ports, real processes that never stay behind.

With REQUIRE_ALL_TESTS=1, as in `.ci/run`, a test that would be skipped fails instead:
a tool that is missing on the build machine must not turn into a test that nobody runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sidecar.process import lifecycle, tracing
from support import (
    Condition,
    Eventually,
    FreePorts,
    Process,
    StartProcess,
    WaitFor,
    environment,
    source,
)

# A shared machine stalls now and then: a slow example is no bug. A found one is printed to be kept.
settings.register_profile("tests", deadline=None, print_blob=True)
settings.load_profile("tests")

MOST_MEMORY = 8 << 30
"""Bytes that the tests, and each process that they start, may have: one that grows without end fails, and nothing else."""
_, _most = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(
    resource.RLIMIT_DATA,
    (MOST_MEMORY if _most == resource.RLIM_INFINITY else min(MOST_MEMORY, _most), _most),
)

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # Under nohup programs would inherit it, and what they do at a hang-up could not be seen. A handler they do not inherit.
    signal.signal(signal.SIGHUP, lambda *_: None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # The same in the background of a shell script: programs would inherit it, and Ctrl-C could not be seen.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRE_ALL = os.environ.get("REQUIRE_ALL_TESTS") == "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(autouse=True)
def same_log_levels() -> Iterator[None]:
    """A test that configures logging, as a command does in this process, leaves no level behind."""
    names = [None, "sidecar", "aiohttp", "asyncio"]
    before = [logging.getLogger(name).level for name in names]
    yield
    for name, level in zip(names, before, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        _fail_instead(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if REQUIRE_ALL and report.skipped:
        _fail_instead(report)
    return report


def _fail_instead(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"REQUIRE_ALL_TESTS=1, and this test was not run: {reason}"


@pytest.fixture(autouse=True)
def _not_draining() -> Iterator[None]:
    """Draining is a state of the process; each test begins with one that is not told to stop."""
    lifecycle._LifecycleState.draining = False
    yield
    lifecycle._LifecycleState.draining = False


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, ReadableSpan]]:
    """`spans()`: the spans that have ended so far, by name; the last of each."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampling.ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(tracing._TracingState, "tracer", provider.get_tracer("tests"))
    return lambda: {span.name: span for span in memory.get_finished_spans()}


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user of this machine can reach and write to; `tmp_path` is the own user's alone."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o777)
        yield path


@pytest.fixture
def protected_symlinks() -> Iterator[None]:
    """The kernel follows links in sticky directories as nearly every distribution lets it; see proc_sys_fs(5)."""
    setting = Path("/proc/sys/fs/protected_symlinks")
    before = setting.read_text()
    try:
        setting.write_text("1")
    except OSError:
        pytest.skip("fs.protected_symlinks cannot be set here")
    yield
    setting.write_text(before)


@pytest.fixture
def wait_for() -> WaitFor:
    """`wait_for(condition, timeout=10.0)`: returns as soon as the condition holds, fails at the limit."""

    def wait(condition: Condition, timeout: float = 10.0) -> None:
        limit = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > limit:
                pytest.fail(f"not within {timeout} s: {source(condition)}")
            time.sleep(0.005)

    return wait


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(condition, timeout=10.0)`: the same beside a running event loop."""

    async def wait(condition: Condition, timeout: float = 10.0) -> None:
        limit = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > limit:
                pytest.fail(f"not within {timeout} s: {source(condition)}")
            await asyncio.sleep(0.002)

    return wait


@pytest.fixture
def free_ports() -> FreePorts:
    """`free_ports(2)`: so many different ports on which nobody listens."""

    def choose(count: int) -> list[int]:
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            return [one.getsockname()[1] for one in sockets]

    return choose


@pytest.fixture
def free_port(free_ports: FreePorts) -> int:
    """A port on which nobody listens."""
    return free_ports(1)[0]


@pytest.fixture
def start_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartProcess]:
    """`start_process("command", "argument", …, until=…, env={…}, cwd=…)`: any program, until the test ends."""
    started: list[Process] = []

    def start(
        *command: object,
        until: str | Condition | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        **options: object,
    ) -> Process:
        process = Process(
            [str(part) for part in command],
            tmp_path_factory.mktemp("process"),
            env=environment() | (env or {}),
            cwd=cwd,
            **options,
        )
        started.append(process)
        if until is not None:
            process.wait_until(until)
        return process

    yield start
    forced = [str(one) for one in reversed(started) if one.kill()]
    if forced:
        pytest.fail("ended only by SIGKILL: " + "\n".join(forced))


@pytest.fixture
def sidecar_process(start_process: StartProcess) -> StartProcess:
    """`sidecar_process("read", "--path", path, until=url)`: the command, or a program if it ends in `.py`."""

    def start(first: object, *arguments: object, **options: object) -> Process:
        program = (first,) if str(first).endswith(".py") else ("-m", "sidecar.cli.main", first)
        return start_process(sys.executable, *program, *arguments, **options)

    return start
