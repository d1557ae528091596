"""A webhook has succeeded when the application says so, and in time."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import sidecar
from reload.conftest import Receiver
from sidecar.reload import ActionFailed, Change, Webhook

CHANGE = Change("/x", "e3b0c44298fc1c149afbf4c8996fb924", ("a",))


@pytest.mark.parametrize(
    ("expected", "status", "succeeds"),
    [
        ((), 200, True),
        ((), 204, True),
        ((), 304, False),
        ((), 404, False),
        ((409,), 409, True),
        ((409,), 200, False),
    ],
)
async def test_the_status_decides(
    expected: tuple[int, ...], status: int, succeeds: bool, receiver: Receiver
) -> None:
    """2xx, or those that are expected, and no others."""
    receiver.statuses.append(status)
    webhook = Webhook(receiver.url, expect_status=expected)
    if succeeds:
        await webhook.run(CHANGE)
    else:
        with pytest.raises(ActionFailed, match=f"was answered with {status}, not"):
            await webhook.run(CHANGE)


async def test_an_application_that_hangs_is_given_up_at_the_time_limit(receiver: Receiver) -> None:
    """The limit is for the whole answer."""
    receiver.held.clear()
    with pytest.raises(ActionFailed, match=r"no answer within 0\.05 s"):
        await Webhook(receiver.url, timeout=0.05).run(CHANGE)


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    """What may be told is the address that was named; a redirected POST is a GET as often as not (RFC 9110, 15.4)."""

    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(receiver.url)

    app = web.Application()
    app.add_routes([web.post("/", elsewhere)])
    async with TestServer(app) as server:
        with pytest.raises(ActionFailed, match="was answered with 307"):
            await Webhook(str(server.make_url("/"))).run(CHANGE)
    assert receiver.requests == []


async def test_secrets_of_the_address_are_in_no_message(free_port: int) -> None:
    """Logs and probes are read by more people than the configuration."""
    url = f"http://ada:secret@127.0.0.1:{free_port}/reload?key=secret"
    with pytest.raises(ActionFailed) as failed:
        await Webhook(url).run(CHANGE)
    assert f"http://127.0.0.1:{free_port}/reload?key=***" in str(failed.value)
    assert "secret" not in f"{failed.value} {Webhook(url)}"
    with pytest.raises(sidecar.ConfigError) as refused:
        Webhook("htp://ada:secret@x/")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"url": "localhost"}, "is no address"),
        ({"url": "http://"}, "is no address"),
        ({"url": "http://x", "timeout": 0}, "timeout must be"),
        ({"url": "http://x", "expect_status": ("200",)}, "expect_status must be"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, object], said: str) -> None:
    """At the border, by name."""
    with pytest.raises(sidecar.ConfigError, match=said):
        Webhook(**arguments)  # type: ignore[arg-type]
