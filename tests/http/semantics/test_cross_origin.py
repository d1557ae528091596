"""What pages of browsers may do: the rules of Go's CrossOriginProtection, for every request that changes something."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sidecar import ConfigError
from sidecar.http.apps.reader import reader_app
from sidecar.http.apps.writer import writer_app
from sidecar.http.semantics.cross_origin import CrossOriginProtection
from support.httpkit import Client, MakeClient, Serve, problem, tag, talk

BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)", "Accept-Language": "en"}
FOREIGN = [
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site"},  # any other port of the same host
    {"Origin": "http://evil.example"},
    {"Origin": "http://HOST:1"},
    {"Origin": "null"},  # a frame in a sandbox, a file
    {"Origin": "http://[evil"},
    {"Referer": "http://evil.example/page"},
    {**BROWSER, "Accept": "image/avif,*/*;q=0.8"},
    {"Sec-Fetch-Site": "none", "Sec-Purpose": "prefetch;prerender"},
    {"Sec-Fetch-Site": "same-origin", "Purpose": "prefetch"},
]
OWN = [
    {},  # curl, a probe
    {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://HOST"},
    {"Origin": "http://HOST"},
    {"Origin": "https://HOST"},  # a proxy that ends TLS
    {"Referer": "http://HOST/page"},
    {**BROWSER, "Accept": "text/html,*/*;q=0.8"},  # typed, over plain http
    {"User-Agent": "Mozilla/5.0 (Windows NT) WindowsPowerShell/5.1"},
]


def sent_to(one: Client, headers: dict[str, str]) -> dict[str, str]:
    return {name: value.replace("HOST", f"127.0.0.1:{one.port}") for name, value in headers.items()}


async def writes(one: Client, headers: dict[str, str]) -> list[int]:
    """The answers to each kind of request that changes something; twice, so that the fast path is asked."""
    headers = sent_to(one, headers)
    body = {"to": tag("1")}
    answers = [
        await one.get("/?content=1", headers=headers),
        await one.get("/?content=1", headers=headers),
        await one.get("/?content=2", headers=headers),
        await one.put("/files/other", data=b"1", headers=headers),
        await one.post("/rollback", json=body, headers=headers),
        await one.post("/rollback", data=b'{"to": 1}', headers={**headers, "Content-Type": "a/b"}),
        await one.delete("/files/other", headers=headers),
    ]
    return [answer.status for answer in answers]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_a_page_of_another_origin_changes_nothing(
    client: MakeClient, tmp_path: Path, headers: dict[str, str]
) -> None:
    """403 for each, also where the same request without that header is answered from memory."""
    one = await client(writer_app(tmp_path / "config"))
    assert set(await writes(one, {})) == {200, 201, 204, 400}
    assert set(await writes(one, headers)) == {403}
    found = await one.get("/?content=3", headers=sent_to(one, headers))
    await problem(found, 403, "cross-site")
    assert (tmp_path / "config").read_text() == "1"


@pytest.mark.parametrize("headers", OWN)
async def test_a_page_of_its_own_and_what_is_no_page_may_write(
    client: MakeClient, tmp_path: Path, headers: dict[str, str]
) -> None:
    """What users type, what tools send, and what the service's own pages do."""
    one = await client(writer_app(tmp_path / "config"))
    assert await writes(one, headers) == [200, 200, 200, 201, 200, 400, 204]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_reading_and_probing_are_left_alone(
    client: MakeClient, tmp_path: Path, headers: dict[str, str]
) -> None:
    """Safe methods change nothing, and no page of another origin can read their answers."""
    one = await client(writer_app(tmp_path / "config"))
    for path in ("/livez", "/files/config", "/versions"):
        assert (await one.get(path, headers=sent_to(one, headers))).status == 200


@pytest.mark.parametrize("name", ["Origin", "Referer"])
async def test_an_origin_can_be_allowed(client: MakeClient, tmp_path: Path, name: str) -> None:
    """`--allowed-origins`: a page elsewhere that is to write."""
    app = writer_app(tmp_path / "config", allowed_origins=["https://Admin.example"])
    one = await client(app)
    for value, status in (("https://admin.example", 200), ("http://admin.example", 403)):
        found = await one.get("/?content=1", headers={name: value})
        assert found.status == status
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://admin.example"}
    assert (await one.put("/files/a", data=b"1", headers=headers)).status == 201


@pytest.mark.parametrize("origin", ["https://admin.example", "https://evil.example"])
async def test_no_preflight_is_granted(client: MakeClient, tmp_path: Path, origin: str) -> None:
    """Without `Access-Control-Allow-Origin` a browser sends no PUT or DELETE (Fetch, section 4.8), also where the origin is allowed."""
    one = await client(writer_app(tmp_path / "config", allowed_origins=["https://admin.example"]))
    for method in ("PUT", "DELETE"):
        headers = {"Origin": origin, "Access-Control-Request-Method": method}
        found = await one.options("/files/a", headers=headers)
        await problem(found, 405, "method-not-allowed")
        assert not [name for name in found.headers if name.lower().startswith("access-control-")]


async def test_two_origins_in_one_request_are_none(served: Serve, tmp_path: Path) -> None:
    """A browser sends one: what comes with two was put together by somebody else."""
    one = await served(writer_app(tmp_path / "config"))
    head = "Host: x\r\nOrigin: http://x\r\nOrigin: http://evil\r\nConnection: close\r\n\r\n"
    answer = await talk(one.port, f"GET /?content=1 HTTP/1.1\r\n{head}".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("a:80", "http://a", 200),
        ("a:443", "https://a", 200),
        ("A.example.", "http://a.example.", 200),
        ("[::1]:8080", "http://[::1]:8080", 200),
        ("[::1]:80", "http://[::1]", 200),
        ("a:443", "http://a", 403),
        ("a:80", "https://a", 403),
        ("a", "http://a.", 403),
        ("a", "http://a@evil", 403),
        ("[::1]", "http://[::2]", 403),
    ],
)
async def test_host_and_origin_are_compared_with_their_ports(
    served: Serve, tmp_path: Path, host: str, origin: str, status: int
) -> None:
    """A port that is written is the default one of the scheme, or another origin (RFC 6454 section 5)."""
    one = await served(writer_app(tmp_path / "config"))
    head = f"Host: {host}\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n"
    answer = await talk(one.port, f"GET /?content=1 HTTP/1.1\r\n{head}".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    ("headers", "of_go", "of_ours"),
    [
        # `switch req.Header.Get("Sec-Fetch-Site")` comes before `Origin`
        ("Host: a\r\nSec-Fetch-Site: same-origin\r\nOrigin: http://b", True, True),
        ("Host: a\r\nSec-Fetch-Site: none", True, True),
        ("Host: a\r\nSec-Fetch-Site: same-site\r\nOrigin: http://a", False, False),
        ("Host: a\r\nSec-Fetch-Site: cross-site", False, False),
        ("Host: a\r\nSec-Fetch-Site: Same-Origin", False, False),
        # `origin == ""`
        ("Host: a", True, True),
        ("Host: a\r\nOrigin:", True, False),
        ("Host: a\r\nSec-Fetch-Site:", True, False),
        # `o.Host == req.Host`, whatever the scheme
        ("Host: a\r\nOrigin: http://a", True, True),
        ("Host: a\r\nOrigin: https://a", True, True),
        ("Host: a:8080\r\nOrigin: http://a:8080", True, True),
        ("Host: a:8080\r\nOrigin: http://a", False, False),
        ("Host: a\r\nOrigin: http://a:8080", False, False),
        ("Host: a\r\nOrigin: null", False, False),
        ("Host: a\r\nOrigin: http://b", False, False),
        ("Host: a\r\nOrigin: http://a:80", False, False),
        # the same origin by RFC 6454 section 5, and another string
        ("Host: a:80\r\nOrigin: http://a", False, True),
        ("Host: a:443\r\nOrigin: https://a", False, True),
        ("Host: A\r\nOrigin: http://a", False, True),
        # another origin
        ("Host: a:80\r\nOrigin: https://a", False, False),
        ("Host: a:443\r\nOrigin: http://a", False, False),
        ("Host: a:8080\r\nOrigin: https://a", False, False),
    ],
)
async def test_the_rules_are_those_of_go_but_for_what_is_the_same_origin(
    served: Serve, tmp_path: Path, headers: str, of_go: bool, of_ours: bool
) -> None:
    """`of_go` is what `Check` in Go 1.25's net/http/csrf.go says; where ours is looser, `Origin` and `Host` are one origin."""
    one = await served(writer_app(tmp_path / "config"))
    request = (
        f"PUT /files/a HTTP/1.1\r\n{headers}\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    )
    answer = await talk(one.port, request.encode())
    assert answer.startswith(b"HTTP/1.1 201 " if of_ours else b"HTTP/1.1 403 ")
    if of_ours and not of_go:
        fields = dict(line.split(": ") for line in headers.split("\r\n"))
        assert origin_of(fields["Origin"]) in {
            origin_of(f"{scheme}://{fields['Host']}") for scheme in ("http", "https")
        }


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """The triple that RFC 6454 section 4 makes of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


async def test_an_absolute_address_comes_before_host(served: Serve, tmp_path: Path) -> None:
    """Its host and its port are those that the request was sent to (RFC 9112 section 3.2.2)."""
    one = await served(writer_app(tmp_path / "config", allowed_hosts=["a", "b"]))
    for target, origin, status in (
        ("http://a:8080", "http://a:8080", 200),
        ("http://a:8080", "http://b", 403),
        ("http://evil", "http://evil", 421),
    ):
        head = f"Host: b\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n"
        answer = await talk(one.port, f"GET {target}/?content=1 HTTP/1.1\r\n{head}".encode())
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("make", [reader_app, writer_app])
async def test_names_of_hosts_can_be_limited(client: MakeClient, tmp_path: Path, make) -> None:
    """DNS rebinding: to a browser the page of that name is the service's own. Addresses cannot be rebound."""
    (tmp_path / "config").write_text("123")
    one = await client(make(tmp_path / "config", allowed_hosts=["config.example", ".svc"]))
    allowed = ["config.example:8080", "CONFIG.example.", "a.b.svc:1", "10.0.0.1:8081", "[::1]:80"]
    for host in (*allowed, "localhost:8081"):
        assert (await one.get("/files", headers={"Host": host})).status == 200
    for host in ("evil.example", "config.example.evil.example:8080", "svc"):
        refused = await one.get("/files", headers={"Host": host})
        await problem(refused, 421, "misdirected")
        assert (await one.get("/readyz", headers={"Host": host})).status == 200


@pytest.mark.parametrize("origin", ["admin.example", "https://a/path", "ftp://a", "https://", "*"])
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    """It would never match, and nobody would know why."""
    with pytest.raises(ConfigError, match="no origin"):
        CrossOriginProtection([origin])


@pytest.mark.parametrize("host", ["https://a", "a:80", "*", ".", "a/b"])
def test_what_is_no_name_of_a_host_is_refused_at_the_start(host: str) -> None:
    """Without scheme, port and pattern."""
    with pytest.raises(ConfigError, match="no name"):
        CrossOriginProtection([], [host])
