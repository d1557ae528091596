"""Wrong tokens are limited, right ones never."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sidecar.http.apps.reader import reader_app
from sidecar.http.semantics import failed_logins
from sidecar.http.semantics.failed_logins import FailedLogins, network_of
from sidecar.process import metrics
from support.httpkit import Client, MakeClient, Serve, place, problem


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def guarded(client: MakeClient, tmp_path: Path) -> Client:
    (tmp_path / "token").write_text("secret")
    place(tmp_path / "config", "123")
    return await client(reader_app(tmp_path / "config", token_file=tmp_path / "token"))


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **more}


async def test_the_eleventh_wrong_token_of_an_address_gets_429(guarded: Client) -> None:
    """With the time to wait, and the end of its connection; other headers do not make another address."""
    before = metrics.HTTP_FAILED_LOGINS_TOTAL._value.get()
    for number in range(10):
        headers = {"X-Forwarded-For": f"192.0.2.{number}", "Forwarded": f"for=192.0.2.{number}"}
        await problem(await guarded.get("/", headers=bearer("x", **headers)), 401, "unauthorized")
    for number in range(3):
        headers = {"X-Forwarded-For": f"198.51.100.{number}", "X-Real-IP": f"198.51.100.{number}"}
        answer = await guarded.get("/", headers=bearer("x", **headers))
        await problem(answer, 429, "too-many-failed-logins")
        assert 1 <= int(answer.headers["Retry-After"]) <= 6
        assert answer.headers["Connection"] == "close"
    assert metrics.HTTP_FAILED_LOGINS_TOTAL._value.get() == before + 13


async def test_the_holder_of_a_right_token_is_never_locked_out(guarded: Client) -> None:
    """From the same address, while wrong ones come: otherwise anybody could lock anybody out."""
    for _ in range(20):
        await guarded.get("/", headers=bearer("x"))
    for _ in range(20):
        assert (await guarded.get("/", headers=bearer("secret"))).status == 200
        assert (await guarded.get("/", headers=bearer("x"))).status == 429


async def test_who_shows_no_token_is_not_limited(guarded: Client) -> None:
    """A browser that opens the address has failed at nothing; neither has a probe, nor another scheme."""
    for _ in range(30):
        await problem(await guarded.get("/"), 401, "unauthorized")
        assert (await guarded.get("/", headers={"Authorization": "Basic eDp5"})).status == 401
        assert (await guarded.get("/livez")).status == 200
    assert (await guarded.get("/", headers=bearer("x"))).status == 401


async def test_probes_are_no_way_around_the_limit(guarded: Client) -> None:
    """Details tell whether a token is right. A probe is answered, whatever it shows; a guess costs a connection there, too."""
    before = metrics.HTTP_FAILED_LOGINS_TOTAL._value.get()
    for _ in range(10):
        answer = await guarded.get("/readyz", headers=bearer("x"))
        assert (answer.status, answer.headers.get("Connection")) == (200, None)
    for _ in range(3):
        answer = await guarded.get("/readyz", headers=bearer("x"))
        assert (answer.status, answer.headers.get("Connection")) == (200, "close")
        assert "details" not in await answer.json()
    assert metrics.HTTP_FAILED_LOGINS_TOTAL._value.get() == before + 13
    answer = await guarded.get("/readyz", headers=bearer("secret"))
    assert "details" in await answer.json()
    assert "Connection" not in answer.headers


async def test_pipelined_guesses_end_with_the_first_429(served: Serve, tmp_path: Path) -> None:
    """Those behind it are not answered: each further guess costs a connection."""
    (tmp_path / "token").write_text("secret")
    one = await served(reader_app(place(tmp_path / "config", "1"), token_file=tmp_path / "token"))
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    request = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n"
    writer.write(request * 15 + request.replace(b"Bearer x", b"Bearer secret"))
    async with asyncio.timeout(20):
        said = await reader.read()
    writer.close()
    assert [said.count(f"HTTP/1.1 {status} ".encode()) for status in (401, 429, 200)] == [10, 1, 0]


def test_as_many_are_permitted_again_in_a_minute() -> None:
    """One each six seconds, up to the first ten."""
    clock = Clock()
    failed = FailedLogins(clock=clock)
    assert [failed.note("192.0.2.1") for _ in range(12)] == [0] * 10 + [6, 6]
    clock.now = 6.0
    assert [failed.note("192.0.2.1") for _ in range(2)] == [0, 6]
    clock.now = 1000.0
    assert [failed.note("192.0.2.1") for _ in range(11)] == [0] * 10 + [6]


def test_many_addresses_are_limited_together() -> None:
    """And none of them takes the memory: what is remembered is bounded."""
    clock = Clock()
    failed = FailedLogins(clock=clock)
    waits = [failed.note(f"10.{number >> 8}.{number & 255}.1") for number in range(6000)]
    assert waits.count(0) == failed_logins.BURST_IN_TOTAL
    assert len(failed._by_address) == failed_logins.MAX_ADDRESSES
    clock.now = 60.0
    assert failed.note("192.0.2.1") == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        (None, "", True),
        ("nonsense", "other", False),
    ],
)
def test_an_address_counts_as_its_network(one: str | None, other: str, *, same: bool) -> None:
    """A host has a whole /64 of IPv6; a dual-stack socket shows IPv4 as mapped addresses."""
    assert (network_of(one) == network_of(other)) is same
