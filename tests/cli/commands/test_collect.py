"""`sidecar collect`: the pipeline on a command line or in a file, its dry run, its check, its status, its end."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from logs.fakes.loki import FakeLoki
from logs.fakes.ndjson import FakeNdjson
from logs.fakes.receiver import Broken, Busy
from sidecar import logs
from sidecar.cli import main
from sidecar.cli.impl import collect, probe_server
from sidecar.http import health_state
from sidecar.logs.collector import Collector
from sidecar.logs.input import checkpoint
from support import Eventually, StartProcess
from support.commands import Command


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log" / "app.log"
    path.parent.mkdir()
    path.write_text('{"level":"warn","msg":"hello","user":"ada"}\nGET /healthz\nlast\n')
    return path


def test_lines_go_to_standard_output_as_they_came(command: Command, log: Path) -> None:
    result = command("collect", log.parent / "*.log", "--once")
    assert (result.code, result.out) == (0, log.read_text())


def test_a_second_run_with_a_checkpoint_delivers_only_what_is_new(
    command: Command, log: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state" / "offsets.json"
    command("collect", log, "--once", "--checkpoint", state)
    with log.open("a") as file:
        file.write("new\n")
    assert command("collect", log, "--once", "--checkpoint", state).out == "new\n"


def test_stages_run_in_the_order_that_the_help_gives(command: Command, log: Path) -> None:
    """Lines that a stage has changed are JSON, the others are as they came."""
    result = command(
        *("collect", log, "--once", "--parse", "json"),
        *("--drop", "/healthz", "--redact", "ada", "--redact", "hel+o"),
    )
    first, second = result.out.splitlines()
    made = json.loads(first)
    assert (made["user"], made["msg"], made["level"]) == ("***", "***", "warn")
    assert second == "last"


def test_every_line_is_json_if_that_is_asked_for(command: Command, log: Path) -> None:
    result = command("collect", log, "--once", "--json", "--label", "site=b", "--add", "n=1")
    made = [json.loads(line) for line in result.out.splitlines()]
    assert [one["message"] for one in made] == log.read_text().splitlines()
    assert {one["labels"]["site"] for one in made} == {"b"}
    assert {one["n"] for one in made} == {"1"}


def test_repeated_options_stand_in_a_variable_one_a_line(command: Command, log: Path) -> None:
    """Patterns hold spaces: only a line break separates them."""
    result = command("collect", log, "--once", env={"SIDECAR_COLLECT_DROP": "GET /h\n^last$"})
    assert result.out.splitlines() == [log.read_text().splitlines()[0]]


CONFIG = """\
files: {log}
checkpoint: {state}
stages:
  - parse: json
  - drop: /healthz
  - redact: {{pattern: ada, with: "<user>"}}
  - add: {{site: berlin, n: 3}}
sinks:
  - url: file://{out}
    json: true
"""


@pytest.fixture
def config(log: Path, tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.yaml"
    out, state = tmp_path / "out", tmp_path / "offsets.json"
    path.write_text(CONFIG.format(log=log, state=state, out=out))
    return path


def test_a_file_describes_the_pipeline_and_flags_win_over_it(
    command: Command, config: Path, tmp_path: Path
) -> None:
    assert command("collect", "--config", config, "--once").code == 0
    made = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [one.get("user") for one in made] == ["<user>", None]
    assert {(one["site"], one["n"]) for one in made} == {("berlin", 3)}

    flags = ("--sink", "stdout", "--drop", "last", "--checkpoint", tmp_path / "other.json")
    result = command("collect", "--config", config, "--once", *flags)
    assert len(result.out.splitlines()) == 1


def test_the_limit_of_deleted_files_is_taken_from_file_and_flag(config: Path) -> None:
    """What a full volume is guarded by reaches the source; without a word it is 1 GiB."""
    with config.open("a") as file:
        file.write("held_limit: 64Mi\n")
    for given, limit in (({}, 64 << 20), ({"held_limit": 1 << 20}, 1 << 20)):
        tail = collect.configuration(str(config), given, as_json=False).only.source()
        assert tail._policy.held_limit == limit
    tail = collect.configuration(None, {"files": ["a"]}, as_json=False).only.source()
    assert tail._policy.held_limit == 1 << 30


def test_the_check_says_what_a_configuration_means_and_opens_nothing(
    command: Command, config: Path, tmp_path: Path
) -> None:
    result = command("collect", "--config", config, "--check-config")
    assert result.code == 0
    assert f"file://{tmp_path / 'out'}" in result.out
    assert "- parse: json\n" in result.out
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "offsets.json").exists()


def test_the_check_writes_stages_as_the_file_has_them(command: Command, tmp_path: Path) -> None:
    """What it prints can be put back into the file, and means the same."""
    written = [
        {"parse": {"regex": r"(?P<a>\d+): '(?P<b>.)'"}},
        {"redact": {"pattern": r"(\d{4})\d{8}(\d{4})", "with": r"\1…\2"}},
        {"keep": ["on", "a, b", "x\ty"]},
        {
            "add": {
                "team": "shop",
                "n": 5,
                "no": "yes",
                "deep": {"x": [True, None, 1.5]},
                "s": ".5",
                7: "1",
            }
        },
        "level",
    ]
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"files": "a", "stages": written}))
    shown = command("collect", "--config", path, "--check-config").out
    block = shown.partition("stages")[2].partition("\nsink ")[0]
    assert yaml.safe_load(textwrap.dedent(f"{'':12}{block.strip()}")) == written


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("files: [a\n", "line 2, column 1"),
        ("fils: a\n", "did you mean files?"),
        ("- a\n", "expected a mapping"),
        ("files: a\nstages: [{pars: json}]\n", "did you mean parse?"),
        ("files: a\nstages: [{parse: xml}]\n", "stage 1 (parse): 'xml' is no form"),
        ("files: a\nstages: [{drop: '('}]\n", "stage 1 (drop): the pattern '('"),
        ("files: a\nstages: [{drop: a, keep: b}]\n", "expected one name"),
        ("files: a\nsinks: [{url: 'loki+http://h', tennant: x}]\n", "did you mean tenant?"),
        ("files: a\nsinks: [ftp://h]\n", "is no sink"),
        ("files: a\nsinks: [stdout, stdout]\n", "same name"),
        ("files: a\nmax_line: many\n", "max_line: 'many' is no size"),
        ("files: a\nmultiline: '('\n", "multiline"),
        ("files: a\nstart: middle\n", "neither beginning nor end"),
        ("sinks: [stdout]\n", "no files to collect"),
        ("files: a\nencoding: klingon\n", "klingon"),
        (
            "stages: [{redact: x}]\nfiles: a\nstages: []\n",
            "line 3, column 1: 'stages' stands here twice",
        ),
        ("files: a\nlabels: {tier: gold, blue: true}\n", "labels: blue: True is no text"),
        ("files: a\nmultiline: {timeout: 1s}\n", "multiline: a rule needs either start or end"),
        ("files: a\nmultiline: {strt: a}\n", "multiline: the rule: there is no 'strt'"),
        ("files: a\nstages: [{time: {field: at, format: '%Q'}}]\n", "'Q' is a bad directive"),
        ("files: a\nsinks: [{url: 'https://h', ca_file: /none}]\n", "ca_file /none: No such file"),
        ("files: a\nsinks: ['file:///tmp/a']\nfiles: [/tmp/a]\n", "twice"),
        ("files: /tmp/a\nsinks: ['file:///tmp/a']\n", "/tmp/a cannot be collected"),
    ],
)
def test_a_wrong_configuration_is_refused_with_place_and_hint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, document: str, said: str
) -> None:
    """Exit code 2 and one line, before anything is opened."""
    path = tmp_path / "pipeline.yaml"
    path.write_text(document)
    assert main.run(["collect", "--config", str(path), "--check-config"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_dry_run_shows_what_the_pipeline_makes_of_a_file(
    command: Command, config: Path, log: Path, tmp_path: Path
) -> None:
    """JSON alone on stdout, the sum on stderr; nothing is sent, nothing is remembered."""
    odd = tmp_path / "odd [name]*.txt"
    odd.write_text(log.read_text() + "no newline at the end")
    result = command("collect", "--config", config, "--dry-run", odd)
    made = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 0
    assert [one.get("message", one.get("msg")) for one in made] == [
        "hello",
        "last",
        "no newline at the end",
    ]
    assert "4 records: 3 pass (3 changed), 1 dropped" in result.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "offsets.json").exists()


def test_the_status_is_a_table_of_positions_and_lag(
    command: Command, log: Path, tmp_path: Path
) -> None:
    """By checkpoint and files alone: it may be asked from outside, while the collector runs."""
    state = tmp_path / "offsets.json"
    size = log.stat().st_size
    command("collect", log, "--once", "--checkpoint", state)
    log.rename(log.with_suffix(".1"))
    with log.with_suffix(".1").open("a") as file:
        file.write("x" * 999 + "\n")
    result = command("collect", "--status", state)
    titles, row, total = result.out.splitlines()
    assert titles.split() == ["FILE", "SINK", "POSITION", "SIZE", "LAG", "STATE"]
    assert row.split() == [
        str(log.with_suffix(".1")),
        "stdout",
        str(size),
        f"{size + 1000:,}",
        "1,000",
        "rotated",
    ]
    assert total == "1 file, 1,000 bytes to deliver"

    [entry] = json.loads(command("collect", "--status", state, "--json").out)["files"]
    assert (entry["position"], entry["lag"]) == (size, 1000)


def test_the_status_of_a_damaged_checkpoint_is_that_of_the_one_before(
    command: Command, log: Path, tmp_path: Path
) -> None:
    state = tmp_path / "offsets.json"
    command("collect", log, "--once", "--checkpoint", state)
    (tmp_path / "offsets.json.previous").write_bytes(state.read_bytes())
    state.write_bytes(b"\0" * 100)
    result = command("collect", "--status", state)
    assert result.code == 0
    assert str(log) in result.out
    assert "no checkpoint" in result.err

    result = command("collect", "--status", tmp_path / "missing.json")
    assert result.code == 1
    assert "missing.json" in result.err


def test_a_name_cannot_forge_a_line_of_the_status(command: Command, tmp_path: Path) -> None:
    """Nor tell a terminal what to do: whoever writes the logs chooses their names."""
    (tmp_path / "a\n0 files, 0 bytes to deliver\x1b[2J.log").write_text("one\n")
    state = tmp_path / "offsets.json"
    command("collect", tmp_path / "*.log", "--once", "--checkpoint", state)
    result = command("collect", "--status", state)
    _, row, total = result.out.splitlines()
    assert row.startswith(f"{tmp_path}/a\\n0 files, 0 bytes to deliver\\x1b[2J.log ")
    assert total == "1 file, 0 bytes to deliver"


def test_a_run_that_could_not_read_a_file_fails_and_names_it(command: Command, log: Path) -> None:
    """Issue 12.1c: a Job that left something out must not be green. As tar and rsync (23) say it by their exit."""
    whole = gzip.compress(os.urandom(5000).hex().encode())
    (log.parent / "old.gz").write_bytes(whole[:2000] + b"?" * 100 + whole[2100:])
    (log.parent / "elsewhere.log").symlink_to("/etc/passwd")
    result = command("collect", log.parent / "*", "--once")
    assert result.code == 1
    assert log.read_text() in result.out
    *_, said = result.err.splitlines()
    assert "not all was delivered" in said
    assert f"{log.parent}/elsewhere.log" in said
    assert f"{log.parent}/old.gz (damaged" in said


def test_what_is_wrong_is_said_in_one_line(command: Command, log: Path, tmp_path: Path) -> None:
    """As a newcomer meets it: no checkpoint, no such file, no such directory."""
    result = command("collect", "--status", log)
    assert result.code == 1
    assert result.err == f"sidecar: {log} is no checkpoint: it is not a checkpoint, or cut off\n"

    result = command("collect", tmp_path / "*.txt", "--once")
    assert f"no file matches {tmp_path}/*.txt yet" in result.err

    result = command("collect", log.parent, "--once")
    assert f"{log.parent} is a directory: name the files in it, as {log.parent}/*" in result.err

    result = command("collect", log, "--once", "--sink", f"file://{log}/out")
    assert result.code == 1
    assert f"sidecar: cannot write to {log}/out: " in result.err


def test_a_reader_of_standard_output_that_goes_is_named(log: Path) -> None:
    """A container that ends again and again must say why; as exit code 1 alone it could be anything."""
    command = [sys.executable, "-m", "sidecar.cli.main", "collect", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        with log.open("a") as file:
            file.write("more\n")
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait(10) == 1
    assert "sidecar: cannot write to standard output: its reader has exited" in said


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_a_program_without_stdin_or_stderr_collects_as_any_other(
    start_process: StartProcess, log: Path, tmp_path: Path, closed: str
) -> None:
    """As daemons start programs: files of ours must not get the numbers of the three that everybody uses."""
    process = start_process(
        *("sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "sidecar.cli.main"),
        *("collect", log, "--sink", f"file://{tmp_path}/out", "--once"),
    )
    assert process.wait() == 0
    assert (tmp_path / "out").read_text() == log.read_text()


@pytest.mark.parametrize(
    ("into", "why"),
    [(">&-", "bad file descriptor"), (">/dev/full", "no space left on device")],
)
def test_lines_that_standard_output_does_not_take_are_not_taken_for_delivered(
    start_process: StartProcess, log: Path, tmp_path: Path, into: str, why: str
) -> None:
    """The reason in one line, a failing exit, and the position where it was."""
    state = tmp_path / "offsets.json"
    process = start_process(
        *("sh", "-c", f'exec "$@" {into}', "sh", sys.executable, "-m", "sidecar.cli.main"),
        *("collect", log, "--checkpoint", state, "--once"),
    )
    assert process.wait() == 1
    assert process.output.splitlines()[-1] == f"sidecar: cannot write to standard output: {why}"
    [entry] = checkpoint.decode(state.read_bytes()).entries
    assert entry.lowest == 0


@pytest.mark.parametrize(
    ("sink", "unwanted"),
    [
        ("stdout", {"aiohttp.client", "http.server", "zoneinfo", "difflib"}),
        (
            "http://127.0.0.1:9",
            {"http.server", "wsgiref", "frozenlist._frozenlist", "zoneinfo", "difflib"},
        ),
    ],
)
def test_a_collector_has_no_more_in_its_memory_than_it_needs(
    tmp_path: Path, sink: str, unwanted: set[str]
) -> None:
    """No second web server, no C++, no certificates where nobody speaks TLS, no client without a receiver: 2 to 15 MB."""
    (tmp_path / "app.log").touch()
    code = (
        "import sys\n"
        "from sidecar.cli import main\n"
        f"assert main.run(['collect', {str(tmp_path)!r} + '/*.log', '--once', '--sink', {sink!r}]) == 0\n"
        f"assert not {unwanted!r} & set(sys.modules), {unwanted!r} & set(sys.modules)\n"
        "client = sys.modules.get('aiohttp.connector')\n"
        "assert client is None or client._SSL_CONTEXT_VERIFIED.cert_store_stats()['x509'] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_delivers_what_is_there_and_exits_with_0(
    number: int,
    sidecar_process: StartProcess,
    eventually: Eventually,
    log: Path,
    tmp_path: Path,
) -> None:
    """The receiver is busy at first; lines written just before the signal arrive, too."""
    async with FakeLoki() as loki:
        loki.next(Busy("0"), Broken(503))
        process = sidecar_process(
            *("collect", log, "--checkpoint", tmp_path / "offsets.json"),
            *("--sink", f"loki+{loki.address}#tenant=shop"),
        )
        await eventually(lambda: len(loki.texts) == 3)
        with log.open("a") as file:
            file.write("".join(f"line {number}\n" for number in range(1000)))
        process.send(number)
        await eventually(lambda: process.popen.poll() is not None)

        assert process.popen.returncode == 0, process
        assert loki.texts[3:] == [f"line {number}" for number in range(1000)]
        assert loki.wrong == []
        assert {request.headers["X-Scope-OrgID"] for request in loki.requests} == {"shop"}


@pytest.mark.parametrize("options", [("--drop", "x"), ("--json",)])
def test_empty_lines_take_no_more_memory_than_others(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """In the chart a collector may have 96 MiB: killed for more, it would read the same lines again, and again."""
    (tmp_path / "app.log").write_bytes(b"\n" * 1_000_000)
    arguments = ["collect", str(tmp_path / "app.log"), "--once", *options]
    code = (
        "import re, sys\n"
        "from sidecar.cli import main\n"
        f"assert main.run({arguments!r}) == 0\n"
        "status = open('/proc/self/status').read()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True, timeout=60
    )
    assert int(done.stderr.split()[-1]) < 64 << 10, "KiB"


async def test_sinks_have_progress_of_their_own(
    sidecar_process: StartProcess, eventually: Eventually, log: Path, tmp_path: Path
) -> None:
    """A receiver that is away does not hold back the others, and gets its lines later."""
    out = tmp_path / "out"
    async with FakeNdjson() as away, FakeNdjson() as there:
        await away.refuse()
        process = sidecar_process(
            *("collect", log, "--checkpoint", tmp_path / "offsets.json"),
            *("--sink", away.address, "--sink", there.address, "--sink", f"file://{out}"),
        )
        await eventually(lambda: len(there.texts) == 3 and out.exists() and out.read_text())
        assert away.texts == []
        await away.listen()
        await eventually(lambda: len(away.texts) == 3)
        process.popen.terminate()
        await eventually(lambda: process.popen.poll() is not None)

        assert process.popen.returncode == 0, process
        assert out.read_text() == log.read_text()


async def test_refused_lines_are_in_the_dead_letters_before_the_position_passes_them(
    sidecar_process: StartProcess, eventually: Eventually, log: Path, tmp_path: Path
) -> None:
    """Killed at any time, a line is delivered, or in the dead letters, or still ahead of the position."""
    letters = tmp_path / "dead.ndjson"
    async with FakeNdjson(poison=lambda text: "healthz" in text) as fake:
        process = sidecar_process(
            *("collect", log, "--checkpoint", tmp_path / "offsets.json"),
            *("--sink", fake.address, "--dead-letter", letters),
        )
        await eventually(lambda: len(fake.texts) == 2 and letters.exists() and letters.read_text())
        process.popen.kill()
        await eventually(lambda: process.popen.poll() is not None)

    [letter] = [json.loads(line) for line in letters.read_text().splitlines()]
    assert letter["record"]["message"] == "GET /healthz"
    assert "400" in letter["reason"]


async def test_probes_and_metrics_are_answered_beside_the_collection(
    sidecar_process: StartProcess,
    eventually: Eventually,
    free_port: int,
    log: Path,
    tmp_path: Path,
) -> None:
    """`--port`: whoever asks learns that it lives, is ready, and how many lines went through."""
    url = f"http://127.0.0.1:{free_port}"
    process = sidecar_process(
        *(
            "collect",
            log,
            "--checkpoint",
            tmp_path / "offsets.json",
            "--sink",
            f"file://{tmp_path}/out",
        ),
        *("--port", free_port, "--host", "127.0.0.1"),
        until=f"{url}/readyz",
    )
    await eventually(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text())

    def lines() -> float:
        text = urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode()
        return float(re.findall(r"^sidecar_logs_lines_total (\S+)$", text, re.MULTILINE)[0])

    await eventually(lambda: lines() == 3)
    for path in ("/livez", "/readyz", "/startupz", "/openapi.json"):
        assert urllib.request.urlopen(url + path, timeout=5).status == 200
    for method, path, status in (("GET", "/nope", 404), ("POST", "/metrics", 405)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url + path, method=method), timeout=5)
        assert refused.value.code == status
        assert refused.value.headers["Content-Type"] == "application/problem+json"
        refused.value.close()
    text = urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode()
    assert (
        "sidecar_watch_mode{" not in text
    )  # it watches no content, so nobody can take its watch for dead
    process.popen.terminate()
    await eventually(lambda: process.popen.poll() is not None)
    assert process.popen.returncode == 0, process


async def test_a_startup_probe_waits_until_the_files_have_been_looked_for(
    log: Path, tmp_path: Path, eventually: Eventually
) -> None:
    """`/startupz` says no before that: a native sidecar lets the application begin when it says yes."""
    collector = Collector(logs.tail(log), [], [logs.FileSink(tmp_path / "out")])
    health = health_state.get_health(probe_server.make_app(collect.probed(collector)))
    assert not health.report("started").ok
    assert health.report("live").ok

    collection = asyncio.create_task(collector.run())
    await eventually(lambda: health.report("started").ok)
    collection.cancel()
    await asyncio.wait([collection])
