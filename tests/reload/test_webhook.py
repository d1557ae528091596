"""A webhook has succeeded when the application says so, and in time."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import sidecar
from reload.conftest import Receiver
from sidecar.reload import ActionFailed, Change, Webhook
from support.httpkit import certificate

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


@pytest.mark.parametrize("status", [400, 409, 422, 500, 501])
async def test_an_answer_about_the_content_is_a_refusal(status: int, receiver: Receiver) -> None:
    """Prometheus and nginx Unit say so with 500 and 400: the version is at fault, and another try changes nothing."""
    receiver.statuses.append(status)
    with pytest.raises(ActionFailed) as failed:
        await Webhook(receiver.url).run(CHANGE)
    assert failed.value.refused


@pytest.mark.parametrize("status", [302, 401, 403, 404, 405, 407])
async def test_an_answer_about_the_request_is_none(status: int, receiver: Receiver) -> None:
    """RFC 9110, 15.4 and 15.5: it is about address, credentials, path and method. An expired token must not roll back what is right."""
    receiver.statuses.append(status)
    with pytest.raises(ActionFailed) as failed:
        await Webhook(receiver.url).run(CHANGE)
    assert not failed.value.refused


@pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504])
async def test_an_answer_that_says_not_now_is_none(status: int, receiver: Receiver) -> None:
    """RFC 9110, 15.5.9, 15.6.3 to 15.6.5; RFC 8470; RFC 6585: the server, or one before it, is not ready."""
    receiver.statuses.append(status)
    with pytest.raises(ActionFailed) as failed:
        await Webhook(receiver.url).run(CHANGE)
    assert not failed.value.refused


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("2", 2.0, 2.2), ("86400", 300.0, 330.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.05, 0.055)],
)
async def test_the_pause_that_is_asked_for_has_a_bound(
    header: str, least: float, most: float
) -> None:
    """RFC 9110, 10.2.3: seconds or a date; a day would be an outage by a typing error."""

    async def busy(_: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": header})

    app = web.Application()
    app.add_routes([web.post("/", busy)])
    async with TestServer(app) as server:
        with pytest.raises(ActionFailed) as failed:
            await Webhook(str(server.make_url("/"))).run(CHANGE)
    assert failed.value.retry_after is not None
    assert least <= failed.value.retry_after <= most


async def test_a_token_is_read_for_each_request_and_gives_way_to_credentials(
    tmp_path: Path,
) -> None:
    """A Secret is renewed while we run (RFC 6750, 2.1; RFC 7617)."""
    shown = []

    async def note(request: web.Request) -> web.Response:
        shown.append(request.headers.get("Authorization"))
        return web.Response()

    app = web.Application()
    app.add_routes([web.post("/", note)])
    token = tmp_path / "token"
    async with TestServer(app) as server:
        url = server.make_url("/")
        webhook = Webhook(str(url), token_file=token)
        with pytest.raises(ActionFailed, match=r"cannot read the secret in .*token: No such file"):
            await webhook.run(CHANGE)
        for secret in ("one\n", "two"):
            token.write_text(secret)
            await webhook.run(CHANGE)
        await Webhook(str(url.with_user("a").with_password("b")), token_file=token).run(CHANGE)
    assert shown == ["Bearer one", "Bearer two", "Basic YTpi"]


async def test_a_server_is_trusted_by_the_authority_that_is_named(tmp_path: Path) -> None:
    """Also one of this machine, which is not verified without one."""
    cert, key = certificate(tmp_path, "server")
    other, _ = certificate(tmp_path, "other")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    app = web.Application()

    async def done(_: web.Request) -> web.Response:
        return web.Response()

    app.add_routes([web.post("/", done)])
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=context)
    try:
        url = f"https://127.0.0.1:{server.port}/"
        await Webhook(url).run(CHANGE)
        await Webhook(url, ca_file=cert).run(CHANGE)
        with pytest.raises(ActionFailed, match=r"(?i)certificate"):
            await Webhook(url, ca_file=other).run(CHANGE)
        with pytest.raises(ActionFailed, match=r"cannot use the authorities in .*none"):
            await Webhook(url, ca_file=tmp_path / "none").run(CHANGE)
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"url": "localhost"}, "is no address"),
        ({"url": "http://"}, "is no address"),
        ({"url": "http://x", "ca_file": ""}, "ca_file: '' is no path"),
        ({"url": "http://x", "token_file": 1}, "token_file: 1 is no path"),
        ({"url": "http://x", "timeout": 0}, "timeout must be"),
        ({"url": "http://x", "expect_status": ("200",)}, "expect_status must be"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, object], said: str) -> None:
    """At the border, by name."""
    with pytest.raises(sidecar.ConfigError, match=said):
        Webhook(**arguments)  # type: ignore[arg-type]
