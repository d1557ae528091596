"""Keys that end with `.url`: what readers see while the servers they name change, fail, or lead elsewhere."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mirror.conftest import StartMirror
from mirror.fakes.kube import KubeApi
from sidecar import mirror
from sidecar.mirror.sources import url_keys
from sidecar.mirror.sources.kube import KubeSource
from sidecar.mirror.states import SourceUnavailable
from sidecar.volume.validation.gate import Gate
from sidecar.volume.volume import Volume
from support import Eventually


class Site:
    """A web server: contents by path, each with an ETag; what is None never ends."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes | None] = {}
        self.redirects: dict[str, str] = {}
        self.answers: list[tuple[str, int]] = []
        self.is_open = asyncio.Event()
        """Cleared where requests are to wait."""
        self.is_open.set()
        app = web.Application()
        app.add_routes([web.get("/{name:.*}", self._get)])
        self.server = TestServer(app)

    def url(self, name: str) -> str:
        return str(self.server.make_url(f"/{name}"))

    async def _get(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        await self.is_open.wait()
        answer = await self._answer(request, name)
        self.answers.append((name, answer.status))
        return answer

    async def _answer(self, request: web.Request, name: str) -> web.StreamResponse:
        if name in self.redirects:
            return web.Response(status=302, headers={"Location": self.redirects[name]})
        if name not in self.contents:
            return web.Response(status=503, text="<html>away</html>")
        content = self.contents[name]
        if content is None:
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"x")
                await asyncio.sleep(0.01)
        etag = f'"{hash(content)}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304)
        return web.Response(body=content, headers={"ETag": etag})


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    await made.server.start_server()
    yield made
    await made.server.close()


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    made = KubeApi()
    await made.server.start_server()
    yield made
    made.drop_watches()
    await made.server.close()


def source(api: KubeApi, **options: Any) -> KubeSource:
    settings = {"url_keys": ["127.0.0.1"], "url_interval": 0.01, **options}
    return KubeSource("kube://shop/configmaps+secrets", server=api.url, **settings)


async def files(volume: Volume) -> dict[str, bytes]:
    return dict(await volume.snapshot())


async def test_a_key_that_ends_with_url_is_what_its_address_answers(
    api: KubeApi, site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Named without the suffix, by ConfigMaps and Secrets, as text or binary; asked again by conditional requests."""
    site.contents |= {"a": b"1", "b": b"\0\xff", "c": b"3"}
    api.put("configmaps", "one", {"a.url": f"{site.url('a')}\n", "b.url": site.url("b").encode()})
    api.put("secrets", "two", {"c.url": site.url("c"), "plain": "p"})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": b"1", "b": b"\0\xff", "c": b"3", "plain": b"p"}
    await eventually(lambda: ("a", 304) in site.answers)
    site.contents["a"] = b"2"
    await eventually(lambda: (Path(volume.path) / "a").read_bytes() == b"2")


async def test_keys_are_published_as_they_are_where_no_host_is_allowed(
    api: KubeApi, site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Off by default: who writes a ConfigMap must not choose what the mirror asks for."""
    api.put("configmaps", "one", {"a.url": site.url("a")})
    running = start_mirror(source(api, url_keys=[]))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a.url": site.url("a").encode()}
    assert site.answers == []


async def test_an_address_that_is_away_delays_nobody_and_keeps_its_last_good(
    api: KubeApi, site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """k8s-sidecar replaced the file by an empty one, and showed changes of other ConfigMaps 33 s later."""
    site.contents["a"] = b"good"
    api.put("configmaps", "one", {"a.url": site.url("a"), "beside": "1"})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    del site.contents["a"]
    await eventually(lambda: ("a", 503) in site.answers)
    api.put("configmaps", "one", {"a.url": site.url("a"), "beside": "2"})
    api.put("configmaps", "two", {"other": "1"})
    await eventually((Path(volume.path) / "other").exists)
    assert await files(volume) == {"a": b"good", "beside": b"2", "other": b"1"}
    site.contents["a"] = b"better"
    await eventually(lambda: (Path(volume.path) / "a").read_bytes() == b"better")


async def test_a_server_that_hangs_delays_nobody(
    api: KubeApi, site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """It drips a byte at a time, and its time has not run out."""
    site.contents["slow"] = None
    api.put("configmaps", "one", {"slow.url": site.url("slow")})
    start_mirror(source(api, timeout=600.0))
    await eventually(Path(volume.path).exists)
    api.put("configmaps", "two", {"other": "1"})
    await eventually((Path(volume.path) / "other").exists)


async def test_the_last_good_outlives_a_restart_of_the_mirror(
    api: KubeApi, site: Site, volume: Volume, eventually: Eventually
) -> None:
    """And `once` asks each address once, whether it answers or not; the rest is published meanwhile."""
    site.contents["a"] = b"good"
    site.is_open.clear()
    api.put("configmaps", "one", {"a.url": site.url("a"), "beside": "1"})
    made = mirror.Mirror(volume.path, [source(api)], once=True)
    running = asyncio.create_task(made.run())
    await eventually(lambda: made.version is not None)
    assert await files(volume) == {"beside": b"1"}
    site.is_open.set()
    await asyncio.wait_for(running, 10)
    assert await files(volume) == {"a": b"good", "beside": b"1"}
    del site.contents["a"]
    api.put("configmaps", "one", {"a.url": site.url("a"), "beside": "2", "b.url": site.url("b")})
    await asyncio.wait_for(mirror.Mirror(volume.path, [source(api)], once=True).run(), 10)
    assert await files(volume) == {"a": b"good", "beside": b"2"}


async def test_a_content_that_the_gate_refuses_keeps_the_last_good(
    api: KubeApi, site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """HTML with 200, where JSON is wanted; what stands beside it goes on."""
    volume = Volume(volume.path, gate=Gate(format="json"))
    site.contents["a"] = b"{}"
    api.put("configmaps", "one", {"a.url": site.url("a"), "beside": "1"})
    running = start_mirror(source(api), volume=volume)
    await eventually(lambda: running.is_complete)
    site.contents["a"] = b"<html>"
    await eventually(lambda: "shop/configmaps/one/a.url" in running.refused)
    api.put("configmaps", "one", {"a.url": site.url("a"), "beside": "2"})
    await eventually(lambda: (Path(volume.path) / "beside").read_bytes() == b"2")
    assert await files(volume) == {"a": b"{}", "beside": b"2"}


async def test_what_is_not_named_any_more_is_removed_and_not_asked_again(
    api: KubeApi, site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A key that is gone, an object that is gone."""
    site.contents |= {"a": b"1", "b": b"2"}
    api.put("configmaps", "others", {"x": "1", "y": "1", "z": "1"})
    api.put("configmaps", "one", {"a.url": site.url("a"), "beside": "1"})
    api.put("configmaps", "two", {"b.url": site.url("b")})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete and len(running.followed[0].record.units) == 5)
    api.put("configmaps", "one", {"beside": "1"})
    await eventually(lambda: not (Path(volume.path) / "a").exists())
    api.put("configmaps", "two", {"b.url": site.url("b"), "more": "1"})
    api.delete("configmaps", "two")
    await eventually(lambda: not (Path(volume.path) / "b").exists())
    await eventually(
        lambda: not any(one.get_name().startswith("fetch ") for one in asyncio.all_tasks())
    )


async def test_addresses_are_asked_again_after_the_api_was_away(
    api: KubeApi, site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """It goes on from the version it had, and nothing is listed; the addresses are those of before."""
    site.contents["a"] = b"1"
    api.put("configmaps", "one", {"a.url": site.url("a")})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete and any("watch" in one for one in api.requests))
    requests = len(api.requests)
    api.drop_watches()
    await eventually(lambda: len(api.requests) >= requests + 2)
    site.contents["a"] = b"2"
    await eventually(lambda: (Path(volume.path) / "a").read_bytes() == b"2")
    assert not any("watch" not in one for one in api.requests[requests:])


async def test_a_key_of_the_object_is_preferred_to_an_address(
    api: KubeApi, site: Site, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Of `a` and `a.url` in one object."""
    api.put("configmaps", "one", {"a": "own", "a.url": site.url("a")})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    assert (await files(volume), site.answers) == ({"a": b"own"}, [])


async def refusal(site: Site, hosts: list[str], url: str, **options: Any) -> str:
    """Fetch an address alone; return why that failed, empty if it did not."""
    settings = {"interval": 60.0, "timeout": 10.0, "max_bytes": 1 << 20, **options}
    keys = url_keys.UrlKeys(hosts, lambda: None, **settings)
    keys.set("one", "1", 0.0, {"a.url": ("a", url.encode())})
    (address,) = keys._addresses()
    try:
        await keys._fetch(address)
    except SourceUnavailable as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("hosts", "url", "said"),
    [
        (["grafana.com"], "http://127.0.0.1:{port}/a", "is not among url_keys"),
        ([".example.com"], "http://example.com.evil.org/", "is not among url_keys"),
        (["*"], "http://127.0.0.1:{port}/a", "127.0.0.1 is the Pod's own"),
        (["*"], "http://localhost:{port}/a", "is the Pod's own"),
        (["*"], "http://127.1:{port}/a", "cannot read http://127.1"),
        (["*"], "http://\uff11\uff12\uff17.0.0.1:{port}/a", "127.0.0.1 is the Pod's own"),
        (["*"], "http://[::ffff:127.0.0.1]:{port}/a", "127.0.0.1 is the Pod's own"),
        (["*"], "http://169.254.169.254/latest/meta-data/", "169.254.169.254 is the Pod's own"),
        (["*"], "http://[fd00:ec2::254]/latest/meta-data/", "fd00:ec2::254 is the Pod's own"),
        (["*"], "file:///etc/passwd", "no http or https address"),
        (["*"], "http://[", "no http or https address"),
        (["127.0.0.1"], "http://127.0.0.1:{port}/to-localhost", "localhost is not among url_keys"),
        (["127.0.0.1"], "http://127.0.0.1:{port}/loop", "more than 5 redirects"),
        (["127.0.0.1"], "http://127.0.0.1:{port}/to-nowhere", "Invalid IPv6 URL"),
        (["127.0.0.1"], "http://127.0.0.1:{port}/large", "larger than 1048576 bytes"),
        (["127.0.0.1"], "http://ada:secret@127.0.0.1:{port}/a?token=s", "token=***"),
    ],
)  # fmt: skip
async def test_an_address_that_must_not_be_asked_is_refused(
    site: Site, hosts: list[str], url: str, said: str
) -> None:
    """Other hosts, and with `*` the Pod itself, the node and its metadata; also by a redirect. Messages show no secret."""
    port = site.server.port
    site.contents["large"] = b"x" * (1 << 20) + b"x"
    site.redirects |= {
        "to-localhost": f"http://localhost:{port}/a",
        "to-nowhere": "http://[",
        "loop": "/loop",
    }
    found = await refusal(site, hosts, url.format(port=port))
    assert said in found
    assert "secret" not in found
    asked = [name for name, _ in site.answers if name == "a"]
    assert asked == (["a"] if "secret" in url else [])


async def test_a_name_that_leads_into_the_pod_is_refused_whenever_it_does(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the address is judged that the connection is made to."""

    def found(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        family = socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port)), (family, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]  # fmt: skip

    monkeypatch.setattr(socket, "getaddrinfo", found)
    said = await refusal(site, ["*"], "http://rebound.example.com/")
    assert "169.254.169.254 is the Pod's own" in said


def test_an_address_of_a_service_is_allowed() -> None:
    """Services and Pods have private addresses: with `*` they are what a user wants to reach."""
    for text in ("10.96.0.10", "192.168.1.1", "fd00:10:96::a", "8.8.8.8"):
        url_keys._check_outside(ipaddress.ip_address(text), text)


async def test_a_redirect_is_followed_and_a_slow_answer_is_not_waited_for(site: Site) -> None:
    """Downloads of releases are redirects; a drip ends with the time for one fetch."""
    site.contents |= {"a": b"1", "slow": None}
    site.redirects["to-a"] = "/a"
    assert await refusal(site, ["127.0.0.1"], site.url("to-a")) == ""
    said = await refusal(site, ["127.0.0.1"], site.url("slow"), timeout=0.05)
    assert "no answer within 0.05 s" in said
