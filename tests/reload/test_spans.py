"""The trace of a version goes on where it is loaded and applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

import sidecar
from reload.conftest import Receiver
from sidecar import reload
from sidecar.volume.content.metadata import Metadata
from support import Eventually

Spans = Callable[[], Mapping[str, ReadableSpan]]
CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def at_once(attempt: int) -> float:
    return 0.0


async def test_what_is_there_at_the_start_begins_a_trace_that_links_to_the_publish(
    receiver: Receiver, volume: sidecar.Volume, spans: Spans
) -> None:
    """It was published at any time before: a trace does not go on after days."""
    await volume.publish({"a": "1"})
    publish = spans()["publish"]
    await reload.run(volume.path, [reload.Webhook(receiver.url)], once=True)
    load, applied, webhook = (spans()[name] for name in ("load", "reload", "webhook"))
    assert load.parent is None
    assert [link.context.span_id for link in load.links] == [publish.context.span_id]
    assert applied.parent is not None
    assert applied.parent.span_id == load.context.span_id
    assert webhook.parent == applied.context


async def test_what_comes_later_goes_on_with_the_trace_of_the_publish(
    receiver: Receiver, volume: sidecar.Volume, background, spans: Spans, eventually: Eventually
) -> None:
    """publish → load → reload → each attempt; what is refused is an error, and the rollback has the same trace."""
    good = await volume.publish({"a": "good"})
    reloader = reload.Reloader(
        f"{volume.path}/", [reload.Webhook(receiver.url)], rollback_on_failure=True
    )
    background(reloader.run())
    await eventually(lambda: reloader.version == good.version)
    receiver.statuses.append(500)
    bad = await volume.publish({"a": "bad"})
    publish = spans()["publish"]
    await eventually(lambda: "rollback" in spans() and reloader.version == good.version)
    refused = spans()["rollback"]
    assert publish.context is not None
    assert refused.context is not None
    assert refused.context.trace_id == publish.context.trace_id
    assert (refused.attributes or {})["sidecar.version"] == bad.version
    # The publish of the rollback, its load and its reload go on with it.
    again = spans()["publish"]
    assert again.parent == refused.context
    assert spans()["load"].parent is not None
    assert spans()["load"].parent.span_id == again.context.span_id  # type: ignore[union-attr]


async def test_an_attempt_that_fails_is_an_error_without_its_message(
    receiver: Receiver, volume: sidecar.Volume, spans: Spans
) -> None:
    """The answer may quote a content: the log has it."""
    await volume.publish({"a": "1"})
    receiver.statuses.append(500)
    failed = list[ReadableSpan]()

    def look(attempt: int) -> float:
        failed.append(spans()["webhook"])
        return 0.0

    await reload.run(volume.path, [reload.Webhook(receiver.url)], once=True, backoff=look)
    assert failed[0].status.status_code == StatusCode.ERROR
    assert (failed[0].attributes or {})["error.type"] == "refused"
    assert "line 3: bad" not in failed[0].to_json()
    assert spans()["webhook"].status.status_code == StatusCode.UNSET


async def test_actions_get_the_trace_context_of_their_attempt(
    volume: sidecar.Volume, spans: Spans, tmp_path: Path
) -> None:
    """A command finds it in TRACEPARENT, a webhook in the header of that name."""
    await volume.publish({"a": "1"}, metadata=Metadata(traceparent=CONTEXT))
    context = await told(volume, tmp_path)
    command = spans()["command"].context
    assert command is not None
    assert context[3:52] == f"{command.trace_id:032x}-{command.span_id:016x}"


async def test_without_spans_actions_get_the_trace_context_of_the_publish(
    volume: sidecar.Volume, tmp_path: Path
) -> None:
    """It travels with the content through processes that have no spans (W3C Trace Context, 2.3)."""
    await volume.publish({"a": "1"}, metadata=Metadata(traceparent=CONTEXT))
    assert await told(volume, tmp_path) == CONTEXT


async def told(volume: sidecar.Volume, directory: Path) -> str:
    """What a command finds in its environment."""
    file = directory / "told"
    command = reload.Command(["sh", "-c", f"printf %s $TRACEPARENT > {file}"])
    await reload.run(volume.path, [command], once=True)
    return file.read_text()
