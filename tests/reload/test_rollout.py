"""Pods take a version one after the other, and the rest is held when the first ones have failed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import selectors
from collections.abc import Coroutine
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import sidecar
from reload.conftest import Receiver
from sidecar import reload
from sidecar.reload import ActionFailed, Change, rollout
from sidecar.reload.rollout import splay_delay
from support import Eventually

pytestmark = pytest.mark.filterwarnings("error")
T = TypeVar("T")
LONG = 3600.0
PODS = [f"web-5c9f8d7b6-{number:05x}" for number in range(1000)]


def at_once(attempt: int) -> float:
    return 0.0


def test_a_thousand_pods_are_spread_over_the_window() -> None:
    """Evenly: in no part of ten is there half as much again as its share, and no gap is a tenth of the window."""
    delays = sorted(splay_delay(pod, "version", 60.0) for pod in PODS)
    assert delays[0] >= 0
    assert delays[-1] < 60
    tenths = [sum(6 * tenth <= delay < 6 * (tenth + 1) for delay in delays) for tenth in range(10)]
    assert min(tenths) > 50
    assert max(tenths) < 150
    assert max(later - earlier for earlier, later in pairwise(delays)) < 6


def test_the_order_is_another_one_for_each_version() -> None:
    """It must not always be the same Pods that try what is new; but a Pod that asks again is answered the same."""
    first = sorted(PODS, key=lambda pod: splay_delay(pod, "one", 60.0))
    second = sorted(PODS, key=lambda pod: splay_delay(pod, "two", 60.0))
    assert len(set(first[:100]) & set(second[:100])) < 50
    assert first == sorted(PODS, key=lambda pod: splay_delay(pod, "one", 60.0))


class _Selector(selectors.DefaultSelector):
    """Waits no time, and moves the clock instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += max(timeout or 0.0, 0.0)
        return super().select(0)


def run_simulated(main: Coroutine[Any, Any, T]) -> T:
    """Run a program on a clock of its own, which jumps to the next thing that happens."""
    selector = _Selector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


class _Board:
    """The server of docs/reload.md without HTTP: it remembers the versions that have failed, and holds them."""

    kind = "hold"

    def __init__(self) -> None:
        self.failed: set[str] = set()

    async def run(self, change: Change) -> None:
        if change.version in self.failed:
            raise ActionFailed("the first ones have failed")


_POD: ContextVar[str] = ContextVar("pod")


@pytest.mark.parametrize("good", [True, False])
def test_a_thousand_pods_take_a_good_version_within_the_window_and_few_a_bad_one(
    good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The figures of docs/reload.md: a window of 60 s, and applications that answer after 1 s."""
    monkeypatch.setattr(rollout, "pod_name", _POD.get)
    caplog.set_level(logging.ERROR, "sidecar.reload")
    board, taken = _Board(), list[float]()
    change = Change("/x", "version", ("a",))

    async def pod(name: str) -> None:
        _POD.set(name)
        reloader = reload.Reloader(
            tmp_path, [reload.Signal("HUP", process="x")], splay=60.0, stop_url="http://x"
        )
        reloader._stop = board  # type: ignore[assignment]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(120):
                await reloader._await_turn(change)
                taken.append(asyncio.get_running_loop().time())
                await asyncio.sleep(1.0)
                if not good:
                    board.failed.add(change.version)

    async def fleet() -> None:
        async with asyncio.TaskGroup() as group:
            for name in PODS:
                group.create_task(pod(name))

    run_simulated(fleet())
    assert max(taken) < 60
    if good:
        assert len(taken) == 1000
    else:
        assert 1 <= len(taken) < 30


def test_versions_that_come_faster_than_turns_put_none_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version each 10 s in a window of 60 s: each Pod takes one within 60 s, and they are spread as for a single version."""
    monkeypatch.setattr(rollout, "pod_name", _POD.get)
    taken = list[float]()

    async def publish() -> list[Any]:
        volume, published = sidecar.Volume(tmp_path, durability="none"), []
        for number in range(20):
            await volume.put("a", str(number))
            published.append(await volume.snapshot())
        return published

    async def pod(name: str) -> None:
        _POD.set(name)
        reloader = reload.Reloader(tmp_path, [reload.Signal("HUP", process="x")], splay=60.0)

        async def take() -> None:
            while (snapshot := reloader._watch.snapshot) is not None:
                if await reloader._await_turn(Change("/x", snapshot.version, ())):
                    taken.append(asyncio.get_running_loop().time())
                    return

        reloader._watch._accept(snapshots[0])
        taking = asyncio.create_task(take())
        for snapshot in snapshots[1:]:
            await asyncio.sleep(10)
            reloader._watch._accept(snapshot)
            reloader._watch._notify()
        await taking

    async def fleet() -> None:
        async with asyncio.TaskGroup() as group:
            for name in PODS[:60]:
                group.create_task(pod(name))

    snapshots = asyncio.run(publish())
    run_simulated(fleet())
    assert len(taken) == 60
    assert max(taken) < 60
    assert sum(moment < 30 for moment in taken) in range(18, 42)


class StopServer:
    """A real server that holds the versions of which a failure was reported."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.reports: list[dict[str, str]] = []
        self.holds = False
        app = web.Application()
        app.add_routes([web.get("/stop", self._ask), web.post("/stop", self._report)])
        self.server = TestServer(app)

    async def _ask(self, request: web.Request) -> web.Response:
        version = request.headers["Sidecar-Version"]
        self.asked.append((request.headers["Sidecar-Pod"], version))
        failed = version in {report["version"] for report in self.reports}
        if self.holds or failed:
            return web.Response(status=409, text="the first ones have failed")
        return web.Response(status=204)

    async def _report(self, request: web.Request) -> web.Response:
        report = await request.json()
        assert request.headers["Sidecar-Version"] == report["version"]
        assert request.headers["Sidecar-Pod"] == report["pod"]
        self.reports.append(report)
        return web.Response(status=204)

    @property
    def url(self) -> str:
        return str(self.server.make_url("/stop"))


@pytest.fixture
async def stop():
    """The server, listening."""
    made = StopServer()
    await made.server.start_server()
    yield made
    await made.server.close()


async def test_a_held_version_waits_and_the_pod_stays_ready(
    receiver: Receiver, volume: sidecar.Volume, stop: StopServer, background,
    eventually: Eventually, count,
) -> None:  # fmt: skip
    """The application works with the one before: a fleet that is held must not leave its Service."""
    first = await volume.publish({"a": "1"})
    reloader = reload.Reloader(
        volume.path, [reload.Webhook(receiver.url)], stop_url=stop.url, backoff=at_once
    )
    background(reloader.run())
    await eventually(lambda: reloader.version == first.version)
    assert stop.asked == [], "the first version of a start does not wait"
    stop.holds = True
    second = await volume.publish({"a": "2"})
    await eventually(lambda: count("hold", "failed") >= 2)
    assert "holds it with 409: the first ones have failed" in (reloader.held or "")
    assert reloader.problem is None
    assert reloader.version == first.version
    assert set(stop.asked) == {(rollout.pod_name(), second.version)}
    stop.holds = False
    await eventually(lambda: reloader.version == second.version)
    assert reloader.held is None
    assert receiver.versions == [first.version, second.version]
    assert stop.reports == []


async def test_without_an_answer_a_version_is_held(
    receiver: Receiver, volume: sidecar.Volume, free_port: int, background, eventually: Eventually,
    count,
) -> None:  # fmt: skip
    """Nobody knows whether the first ones have failed."""
    first = await volume.publish({"a": "1"})
    url = f"http://127.0.0.1:{free_port}/"
    reloader = reload.Reloader(
        volume.path, [reload.Webhook(receiver.url)], stop_url=url, backoff=at_once
    )
    background(reloader.run())
    await eventually(lambda: reloader.version == first.version)
    await volume.publish({"a": "2"})
    await eventually(lambda: count("hold", "failed") >= 2)
    assert receiver.versions == [first.version]


async def test_a_failure_holds_the_other_pods(
    receiver: Receiver, tmp_path: Path, stop: StopServer, background, eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch, count,
) -> None:  # fmt: skip
    """The first Pod reports once what its application has refused, with the reason, and rolls back; the second one never takes it."""
    name = "pod-1"
    monkeypatch.setattr(rollout, "pod_name", lambda: name)
    volumes = [sidecar.Volume(tmp_path / one) for one in ("1", "2")]
    reloaders = []
    good = ""
    for volume in volumes:
        good = (await volume.publish({"a": "good"})).version
        reloaders.append(
            reload.Reloader(
                f"{volume.path}/",
                [reload.Webhook(receiver.url)],
                stop_url=stop.url,
                rollback_on_failure=True,
                backoff=at_once,
            )
        )
        name = "pod-2"
        background(reloaders[-1].run())
    await eventually(lambda: all(one.version == good for one in reloaders))
    receiver.statuses.append(500)
    bad = (await volumes[0].publish({"a": "bad"})).version
    await eventually(lambda: reloaders[0].version == good and stop.reports)
    assert stop.reports == [{"pod": "pod-1", "version": bad, "reason": stop.reports[0]["reason"]}]
    assert "answered with 500, not 2xx: line 3: bad" in stop.reports[0]["reason"]
    await volumes[1].publish({"a": "bad"})
    await eventually(lambda: reloaders[1].held is not None)
    assert receiver.versions.count(bad) == 1
    assert len(stop.reports) == 1


async def test_a_report_that_nobody_takes_delays_nothing(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It is said in the log, and the rollback goes on."""
    app = web.Application()

    async def leave(request: web.Request) -> web.Response:
        return web.Response(status=204 if request.method == "GET" else 500)

    app.add_routes([web.route("*", "/", leave)])
    async with TestServer(app) as server:
        good = await volume.publish({"a": "good"})
        reloader = reload.Reloader(
            f"{volume.path}/", [reload.Webhook(receiver.url)], rollback_on_failure=True,
            stop_url=str(server.make_url("/")),
        )  # fmt: skip
        background(reloader.run())
        await eventually(lambda: reloader.version == good.version)
        receiver.statuses.append(500)
        bad = await volume.publish({"a": "bad"})
        await eventually(
            lambda: reloader.refused == bad.version and reloader.version == good.version
        )
        await eventually(
            lambda: f"POST {server.make_url('/')} was answered with 500" in caplog.text
        )


async def test_a_newer_version_ends_the_wait_for_the_turn(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """And one to which the writer has gone back has no turn: the application has it."""
    first = await volume.publish({"a": "1"})
    reloader = reload.Reloader(volume.path, [reload.Webhook(receiver.url)], splay=1e9)
    background(reloader.run())
    await eventually(lambda: reloader.version == first.version)
    second = await volume.publish({"a": "2"})
    await eventually(lambda: reloader._watch.etag == second.etag)
    await volume.publish({"a": "1"})
    await eventually(lambda: reloader._watch.etag == first.etag)
    assert receiver.versions == [first.version]
    assert reloader.version == first.version


async def test_the_turn_comes(
    receiver: Receiver, volume: sidecar.Volume, background, eventually: Eventually
) -> None:
    """After the part of the window that name and version give."""
    first = await volume.publish({"a": "1"})
    reloader = reload.Reloader(volume.path, [reload.Webhook(receiver.url)], splay=0.05)
    background(reloader.run())
    await eventually(lambda: reloader.version == first.version)
    second = await volume.publish({"a": "2"})
    await eventually(lambda: reloader.version == second.version)
    assert receiver.versions == [first.version, second.version]


@pytest.mark.parametrize("status", [301, 404, 500])
async def test_what_is_no_success_holds(status: int) -> None:
    """A redirect is no leave either, and is not followed."""
    app = web.Application()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": "/yes"})

    async def yes(_: web.Request) -> web.Response:
        return web.Response()

    app.add_routes([web.get("/", answer), web.get("/yes", yes)])
    async with TestServer(app) as server:
        stop = rollout.StopUrl(str(server.make_url("/")), "pod")
        with pytest.raises(ActionFailed, match=f"holds it with {status}"):
            await stop.run(Change("/x", "0", ()))
