"""Each version reaches the application once, the newest always, and what has failed is tried again."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

import sidecar
from reload.conftest import Receiver
from sidecar import reload
from sidecar.reload import options
from support import Eventually

pytestmark = pytest.mark.filterwarnings("error")
LONG = 3600.0


def at_once(attempt: int) -> float:
    return 0.0


def never(attempt: int) -> float:
    """No second attempt in the time of a test: what goes on is because of something else."""
    return LONG


async def test_a_set_is_told_once_with_the_names_that_changed(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """k8s-sidecar #216: one notification for a set of files, and not one for each."""
    first = await volume.publish({"a": "1", "b": "2", "ö": "3"})
    reloader = reload.Reloader(volume.path, [reload.Webhook(receiver.url)])
    background(reloader.run())
    await eventually(lambda: reloader.version == first.version)
    second = await volume.publish({"a": "1", "b": "changed"})
    await eventually(lambda: reloader.version == second.version)
    assert receiver.requests == [(first.version, "a,b,%C3%B6"), (second.version, "b,%C3%B6")]


async def test_a_version_that_is_refused_is_tried_again(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually, count,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Answers of 500 are failures, which are counted and said; a success ends them."""
    published = await volume.publish({"a": "1"})
    receiver.statuses.extend([500, 503])
    reloader = reload.Reloader(volume.path, [reload.Webhook(receiver.url)], backoff=at_once)
    with caplog.at_level(logging.INFO, "sidecar.reload"):
        background(reloader.run())
        await eventually(lambda: reloader.version == published.version)
    assert receiver.versions == [published.version] * 3
    assert (count("webhook", "failed"), count("webhook", "ok")) == (2, 1)
    said = [one.getMessage() for one in caplog.records if one.name.startswith("sidecar.reload")]
    where = f"version {published.version} of {volume.path}"
    assert said[0] == (
        f"{where} was not applied: POST {receiver.url} was answered with 500, not 2xx: line 3: bad; trying again"
    )
    assert said[-1] == f"{where}: webhook {receiver.url} succeeded"
    assert len(said) == 3


async def test_a_receiver_that_is_down_gets_the_newest_version_once_it_is_up(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """configmap-reload #42: the webhook fails while the application is not up yet, and the reload must not be lost."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        await volume.publish({"a": "1"})
        url = f"http://127.0.0.1:{port}/reload"
        reloader = reload.Reloader(volume.path, [reload.Webhook(url)], backoff=at_once)
        background(reloader.run())
        await eventually(lambda: reloader.problem is not None)
        assert "does the application listen there?" in (reloader.problem or "")
        newest = await volume.publish({"a": "2"})
        await eventually(lambda: newest.version in (reloader.problem or ""))
    late = TestServer(receiver._app(), port=port)
    await late.start_server()
    try:
        await eventually(lambda: reloader.version == newest.version)
    finally:
        await late.close()
    assert receiver.requests == [(newest.version, "a")]
    assert reloader.problem is None


async def test_versions_that_come_while_one_is_told_are_skipped_but_for_the_newest(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """No pile-up: a slow application is asked once at a time, and then for what holds now."""
    first = await volume.publish({"a": "1"})
    receiver.held.clear()
    actions = [reload.Webhook(receiver.url), reload.Webhook(receiver.url)]
    reloader = reload.Reloader(volume.path, actions)
    background(reloader.run())
    await eventually(lambda: receiver.versions == [first.version])
    await volume.publish({"a": "2"})
    await volume.publish({"a": "3"})
    newest = await volume.publish({"a": "4"})
    await eventually(lambda: reloader._watch.etag == newest.etag)
    receiver.held.set()
    await eventually(lambda: reloader.version == newest.version)
    assert receiver.versions == [first.version, newest.version, newest.version]
    assert receiver.most_at_a_time == 1


@pytest.mark.parametrize("away", ["hangs", "refuses", "answers 500", "closes"])
async def test_a_receiver_that_is_away_gathers_no_queue(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually, away: str,
    free_port: int, count,
) -> None:  # fmt: skip
    """Forty versions meanwhile: one request at a time, the memory holds one version, and the newest wins."""
    url = receiver.url
    if away == "refuses":
        url = f"http://127.0.0.1:{free_port}/reload"
    elif away == "hangs":
        receiver.held.clear()
    elif away == "answers 500":
        receiver.statuses.extend([500] * 10_000)
    else:
        receiver.closes = True
    reloader = reload.Reloader(
        f"{volume.path}/", [reload.Webhook(url, timeout=0.1)], backoff=lambda _: 0.005
    )
    background(reloader.run())
    published = await volume.publish({"a": "0"})
    await eventually(lambda: count("webhook", "failed") > 0)
    tasks = len(asyncio.all_tasks())
    for number in range(1, 40):
        published = await volume.publish({"a": str(number)})
    await eventually(lambda: published.version in (reloader.problem or ""))

    def kept() -> set[str]:
        gc.collect()
        changes = [one for one in gc.get_objects() if isinstance(one, reload.Change)]
        return {one.version for one in changes if one.path == reloader._watch.path}

    await eventually(lambda: kept() == {published.version})
    assert len(asyncio.all_tasks()) <= tasks + 5
    # The receiver may see the end of one request after the beginning of the next.
    assert receiver.most_at_a_time <= 2
    server = TestServer(receiver._app(), port=free_port)
    if away == "refuses":
        await server.start_server()
    receiver.closes = False
    receiver.statuses.clear()
    receiver.held.set()
    await eventually(lambda: reloader.version == published.version)
    await server.close()
    assert receiver.versions[-1] == published.version
    assert count("webhook", "ok") == 1


async def test_the_pause_that_a_receiver_asks_for_is_kept(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """And not the backoff, which would be over at once; a newer version does not wait for it."""
    receiver.retry_after = "3600"
    receiver.statuses.append(503)
    await volume.publish({"a": "1"})
    reloader = reload.Reloader(volume.path, [reload.Webhook(receiver.url)], backoff=at_once)
    background(reloader.run())
    await eventually(lambda: reloader.problem is not None)
    newer = await volume.publish({"a": "2"})
    await eventually(lambda: reloader.version == newer.version)
    assert len(receiver.versions) == 2


async def test_fifty_versions_in_bursts_end_with_the_last_one(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """Never two requests at a time, none for a version twice, and the last one is applied."""
    reloader = reload.Reloader(f"{volume.path}/", [reload.Webhook(receiver.url)])
    background(reloader.run())
    published = []
    for number in range(50):
        published.append((await volume.publish({"a": str(number)})).version)
        if number % 10 == 9:
            await eventually(lambda: reloader.version == published[-1])
    assert receiver.versions[-1] == published[-1]
    places = [published.index(one) for one in receiver.versions]
    assert places == sorted(set(places))
    assert receiver.most_at_a_time == 1


async def test_a_newer_version_does_not_wait_for_the_next_attempt(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """The mended configuration is applied at once, whatever pause the broken one had come to."""
    await volume.publish({"a": "broken"})
    receiver.statuses.append(500)
    reloader = reload.Reloader(volume.path, [reload.Webhook(receiver.url)], backoff=never)
    background(reloader.run())
    await eventually(lambda: reloader.problem is not None)
    mended = await volume.publish({"a": "mended"})
    await eventually(lambda: reloader.version == mended.version)
    assert reloader.problem is None


async def test_going_back_to_the_last_version_is_told_too(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """thanos#5324: after a version that failed nobody knows what the application has."""
    good = await volume.publish({"a": "good"})
    reloader = reload.Reloader(volume.path, [reload.Webhook(receiver.url)], backoff=never)
    background(reloader.run())
    await eventually(lambda: reloader.version == good.version)
    receiver.statuses.append(500)
    bad = await volume.publish({"a": "bad"})
    await eventually(lambda: reloader.problem is not None)
    await volume.publish({"a": "good"})
    await eventually(lambda: reloader.version == good.version)
    assert receiver.requests == [(good.version, "a"), (bad.version, "a"), (good.version, "")]


async def test_in_order_the_next_action_begins_after_the_success_of_the_one_before(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually, tmp_path: Path
) -> None:
    """What has succeeded is not done again because the next one fails."""
    await volume.publish({"a": "1"})
    log = tmp_path / "log"
    first = reload.Command(["sh", "-c", f"echo first >> {log}"])
    receiver.statuses.extend([500, 500])
    last = reload.Command(["sh", "-c", f"echo last >> {log}"])
    actions: list[reload.Action] = [first, reload.Webhook(receiver.url), last]
    await reload.run(volume.path, actions, once=True, backoff=at_once)
    assert log.read_text() == "first\nlast\n"
    assert len(receiver.requests) == 3


async def test_in_parallel_no_action_waits_for_another(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually, tmp_path: Path
) -> None:
    """One that hangs holds up the version, and not the other actions."""
    published = await volume.publish({"a": "1"})
    mark = tmp_path / "mark"
    receiver.held.clear()
    touch = reload.Command(["touch", str(mark)])
    actions: list[reload.Action] = [reload.Webhook(receiver.url), touch]
    reloader = reload.Reloader(volume.path, actions, parallel=True)
    background(reloader.run())
    await eventually(mark.exists)
    assert reloader.version is None
    receiver.held.set()
    await eventually(lambda: reloader.version == published.version)


async def test_without_the_initial_run_the_first_change_is_the_first_to_be_told(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """For an application that reads its files when it starts, and starts later."""
    present = await volume.publish({"a": "1", "b": "1"})
    reloader = reload.Reloader(volume.path, [reload.Webhook(receiver.url)], initial=False)
    background(reloader.run())
    await eventually(lambda: reloader.version == present.version)
    newer = await volume.publish({"a": "1", "b": "2"})
    await eventually(lambda: reloader.version == newer.version)
    assert receiver.requests == [(newer.version, "b")]


async def test_once_waits_for_the_first_content(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """An emptyDir is empty when an init container looks at it: that is no version."""
    Path(volume.path).mkdir()
    reloader = reload.Reloader(volume.path, [reload.Webhook(receiver.url)], once=True)
    task = background(reloader.run())
    await eventually(lambda: reloader.started)
    published = await volume.publish({"a": "1"})
    await task
    assert receiver.requests == [(published.version, "a")]


async def test_a_version_is_applied_when_the_application_reports_it(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually, count
) -> None:
    """The actions have succeeded, and still it is not ready before the application says so."""
    published = await volume.publish({"a": "1"})
    reloader = reload.Reloader(
        volume.path, [reload.Webhook(receiver.url)], confirm_url=receiver.active_url,
        confirm_timeout=0.05, backoff=at_once,
    )  # fmt: skip
    background(reloader.run())
    await eventually(lambda: count("confirm", "failed") >= 2)
    assert f"did not report version {published.version} within 0.05 s" in (reloader.problem or "")
    assert len(receiver.requests) >= 2, "all actions run again"
    receiver.active = published.version
    await eventually(lambda: reloader.version == published.version)
    assert reloader.problem is None
    assert count("confirm", "ok") == 1


async def test_a_newer_version_does_not_wait_for_the_confirmation_of_an_older_one(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """A question may be cut off: it changes nothing."""
    first = await volume.publish({"a": "1"})
    reloader = reload.Reloader(
        volume.path, [reload.Webhook(receiver.url)], confirm_url=receiver.active_url,
        confirm_timeout=LONG,
    )  # fmt: skip
    background(reloader.run())
    await eventually(lambda: receiver.versions == [first.version])
    newer = await volume.publish({"a": "2"})
    await eventually(lambda: receiver.versions == [first.version, newer.version])


async def test_a_cancellation_lets_a_running_action_end_and_begins_nothing_new(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually, count
) -> None:
    """SIGTERM is this cancellation."""
    await volume.publish({"a": "1"})
    receiver.held.clear()
    actions = [reload.Webhook(receiver.url), reload.Webhook(receiver.url)]
    task = background(reload.run(volume.path, actions, drain_timeout=LONG))
    await eventually(lambda: receiver.requests)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    receiver.held.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert count("webhook", "ok") == 1
    assert len(receiver.requests) == 1


async def test_a_cancellation_does_not_wait_longer_than_the_drain(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """An application that hangs must not hold up the end of the Pod."""
    await volume.publish({"a": "1"})
    receiver.held.clear()
    webhook = reload.Webhook(receiver.url, timeout=LONG)
    task = background(reload.run(volume.path, [webhook], drain_timeout=0.0))
    await eventually(lambda: receiver.requests)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_the_series_of_each_action_begin_at_0(
    volume: sidecar.Volume, background, eventually: Eventually, count: Callable[[str, str], float]
) -> None:
    """An alert on a counter that begins with its first failure never fires."""
    reloader = reload.Reloader(f"{volume.path}/", [reload.Signal("HUP", process="none")])
    background(reloader.run())
    await eventually(lambda: count("signal", "failed") >= 0)
    assert count("signal", "ok") >= 0


def test_pauses_double_up_to_half_a_minute_and_are_spread() -> None:
    """A fleet must not come back in step."""
    for attempt, longest in zip(itertools.count(), (0.5, 1, 2, 4, 8, 16, 30, 30), strict=False):
        pauses = {options.exponential_backoff(attempt) for _ in range(50)}
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(pauses) > 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"actions": []}, "at least one action"),
        ({"once": True, "initial": False}, "once applies the present version"),
        ({"confirm_url": "localhost:80"}, "'localhost:80' is no address"),
        ({"confirm_url": "http://x", "confirm_timeout": 0}, "confirm_timeout must be"),
        ({"drain_timeout": -1}, "drain_timeout must be"),
        ({"recheck": 0}, "recheck must be"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, object], said: str) -> None:
    """Before anything happens, and by their names."""
    actions = [reload.Signal("HUP", process="x")]
    with pytest.raises(sidecar.ConfigError, match=said):
        reload.Reloader("/x", **{"actions": actions} | arguments)  # type: ignore[arg-type]
