"""A configuration file: what is refused before the start, and what stands for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar._errors import ConfigError
from sidecar.logs import config_file, stages
from sidecar.logs import pipeline as config
from sidecar.logs.config_references import References


def loaded(tmp_path: Path, document: str) -> config.Pipeline:
    path = tmp_path / "pipeline.yaml"
    path.write_text(document)
    return config_file.load(path).only


def test_variables_and_files_stand_in_any_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In lists, in mappings, with a default, and as `${` itself; numbers and truths are read from them as well."""
    monkeypatch.setenv("SITE", "berlin")
    monkeypatch.setenv("LINES", "7")
    monkeypatch.setenv("EMPTY", "")
    (tmp_path / "key").write_text("s3cret\n")
    pipeline = loaded(
        tmp_path,
        f"""
files: ['/var/log/${{SITE}}/*.log']
labels: {{site: '${{SITE}}', tier: "${{TIER:-gold}}", e: "${{EMPTY:-x}}", price: '$${{1}}'}}
json: '${{JSON:-true}}'
sinks:
  - url: 'http://h/${{SITE}}'
    batch_lines: '${{LINES}}'
    headers: {{X-Key: "${{file:{tmp_path}/key}}"}}
""",
    )
    assert pipeline.files == ["/var/log/berlin/*.log"]
    assert pipeline.labels == {"site": "berlin", "tier": "gold", "e": "x", "price": "${1}"}
    assert pipeline.json is True
    sink: Any = pipeline.make_sinks()[0]
    assert (sink.name, sink.batching.max_lines) == ("http://h/berlin", 7)
    assert sink._fixed_headers["X-Key"] == "s3cret"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("${NOT_SET_ANYWHERE}", "labels: site: the variable NOT_SET_ANYWHERE is not set"),
        ("${file:/nonexistent/key}", "labels: site: cannot read /nonexistent/key"),
        ("${a b}", "names no variable"),
        ("${}", "names no variable"),
    ],
)
def test_what_is_not_there_is_refused_with_its_place(
    value: str, words: str, tmp_path: Path
) -> None:
    """An empty tenant or address would be found by nobody."""
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, f"files: /x\nlabels: {{site: '{value}'}}")


def test_a_value_cannot_bring_in_keys_of_its_own() -> None:
    """What a variable holds is text, whatever it looks like."""
    made = References({"X": "a\nsinks: [stdout]"}).resolved({"files": "${X}"}, "here")
    assert made == {"files": "a\nsinks: [stdout]"}


@pytest.mark.parametrize(
    "form",
    [
        "yyyy-MM-dd HH:mm:ss",
        "ISO8601",
        "2006-01-02T15:04:05Z07:00",
        "%Y-MM-dd",
        "x",
        "%d.%m.%Y HH:mm",
    ],
)
def test_a_format_of_another_language_is_refused(form: str) -> None:
    """Java, .NET, Go: it would fit no line, and every line would keep the time of its reading."""
    with pytest.raises(ConfigError, match="strptime"):
        stages.parse_time("at", form)


@pytest.mark.parametrize(
    "form", ["%Y-%m-%dT%H:%M:%S", "%d/%b/%Y:%H:%M:%S %z", "%b %d %H:%M:%S", "Today %H:%M"]
)
def test_a_format_with_words_around_its_directives_is_fine(form: str) -> None:
    stages.parse_time("at", form)


@pytest.mark.parametrize(
    "document",
    [
        "checkpoint: {dir}",
        "checkpoint: {dir}/new/",
        "dead_letters: {dir}",
        "sinks: [file://{dir}]",
        "sinks: [file://{dir}/new/]",
        "sinks: [ftp://h]",
        "sinks: [loki+ftp://h]",
        "sinks: [elasticsearch+http://h/Logs]",
        "sinks: [elasticsearch+http://h/logs-*]",
        "sinks: [{{url: elasticsearch+http://h, index: ''}}]",
        "sinks: [{{url: loki+http://h, tenant: ''}}]",
        "sinks: [{{url: http://h, headers: {{'X Y': z}}}}]",
        "sinks: [{{url: otlp+http://h, retry_status: [200]}}]",
        "stages: [{{time: {{field: at, zone: Mars/Olympus}}}}]",
    ],
)
def test_what_can_never_work_is_refused_before_the_start(document: str, tmp_path: Path) -> None:
    """`--check-config` makes all that a run would make."""
    with pytest.raises(ConfigError):
        make_all(loaded(tmp_path, "files: /x\n" + document.format(dir=tmp_path)))


def make_all(pipeline: config.Pipeline) -> None:
    pipeline.source()
    pipeline.make_stages()
    pipeline.make_sinks()
    pipeline.make_dead_letters()
