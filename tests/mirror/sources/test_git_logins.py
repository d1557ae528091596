"""Logins: for whom they are, where they come from, and when they are renewed."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sidecar.mirror.sources import git_logins
from sidecar.mirror.sources.git_logins import AskedLogin, GitHubApp, Login, StoredLogins
from sidecar.mirror.states import SourceUnavailable

REPOSITORY = "https://git.example.com/team/dags.git"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RSA key, as GitHub gives one for an app; the public one lies beside it."""
    made = tmp_path_factory.mktemp("key") / "app.pem"
    subprocess.run(["openssl", "genrsa", "-out", made, "2048"], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "rsa", "-in", made, "-pubout", "-out", made.with_suffix(".pub")],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


class GitHub:
    """The endpoint that makes tokens for an installation, as GitHub documents it.

    https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app
    https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app
    """

    def __init__(self, public_key: Path) -> None:
        self.lifetime, self.made, self._key = 3600.0, 0, public_key
        app = web.Application()
        app.router.add_post("/app/installations/{id}/access_tokens", self._post)
        self.server = TestServer(app)

    async def _post(self, request: web.Request) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        problem = self._problem(token)
        if scheme != "Bearer" or problem or request.match_info["id"] != "77":
            return web.json_response({"message": problem or "Not Found"}, status=401)
        self.made += 1
        expires = datetime.fromtimestamp(int(time.time() + self.lifetime), UTC)
        answer = {"token": f"ghs_{self.made}", "expires_at": f"{expires:%Y-%m-%dT%H:%M:%SZ}"}
        return web.json_response(answer, status=201)

    def _problem(self, token: str) -> str:
        """Return why a token is refused: RS256, `iat` in the past, `exp` at most ten minutes away, `iss` the app."""
        head, claims, signature = token.split(".")
        if json.loads(decoded(head)) != {"alg": "RS256", "typ": "JWT"}:
            return "'alg' must be RS256"
        found, now = json.loads(decoded(claims)), time.time()
        if found["iss"] != "Iv1.app":
            return "'Issuer' claim ('iss') must be the client id"
        if not (found["iat"] <= now and now < found["exp"] <= now + 600):
            return "'Expiration time' claim ('exp') is too far in the future"
        signed = self._key.with_name("signature")
        signed.write_bytes(decoded(signature))
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-verify", self._key, "-signature", signed],
            input=f"{head}.{claims}".encode(), capture_output=True, check=False,
        )  # fmt: skip
        return "" if done.returncode == 0 else "A JSON web token could not be decoded"


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.fixture
async def github(key: Path) -> AsyncIterator[GitHub]:
    made = GitHub(key.with_suffix(".pub"))
    await made.server.start_server()
    yield made
    await made.server.close()


def app(github: GitHub, key: Path, name: str = "Iv1.app") -> GitHubApp:
    api = str(github.server.make_url("/"))
    return GitHubApp(REPOSITORY, name, "77", str(key), api_url=api, timeout=5.0)


async def test_a_github_app_gets_a_token_for_its_installation(github: GitHub, key: Path) -> None:
    """git-sync's auth_github_app_client_id; a token that is good is asked for once."""
    one = app(github, key)
    wanted = Login("https://git.example.com", "x-access-token", "ghs_1")
    assert await one.get() == (wanted,)
    assert await one.get() == (wanted,)
    assert github.made == 1


async def test_a_token_is_renewed_before_it_expires(github: GitHub, key: Path) -> None:
    """Five minutes before: a transfer that begins with it can end."""
    github.lifetime = 299.0
    one = app(github, key)
    await one.get()
    (login,) = await one.get()
    assert login.password == "ghs_2"


async def test_a_refused_token_is_replaced_but_not_at_each_attempt(
    github: GitHub, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a server is away, GitHub is left alone; a token that was revoked is replaced after a minute."""
    one = app(github, key)
    await one.get()
    one.forget()
    await one.get()
    assert github.made == 1
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    one.forget()
    await one.get()
    assert github.made == 2


@pytest.mark.parametrize("wrong", ["app", "key", "no key"])
async def test_what_github_says_is_told(
    github: GitHub, key: Path, tmp_path: Path, wrong: str
) -> None:
    if wrong == "app":
        one, said = app(github, key, "another"), "must be the client id"
    elif wrong == "key":
        other = tmp_path / "other.pem"
        subprocess.run(
            ["openssl", "genrsa", "-out", other, "2048"], check=True, capture_output=True
        )
        one, said = app(github, other), "401: A JSON web token could not be decoded"
    else:
        one, said = app(github, tmp_path / "missing"), "cannot sign with the key in"
    with pytest.raises(SourceUnavailable, match=said):
        await one.get()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("username=ada\npassword=se=cret\n", ("ada", "se=cret")),
        ("username=ada\n", None),
        ("<html>", None),
    ],
)
async def test_an_address_gives_a_login(answer: str, found: tuple[str, str] | None) -> None:
    """git-sync's auth_askpass_url_*: asked each time, so that a token can change."""

    async def get(request: web.Request) -> web.Response:
        return web.Response(text=answer)

    site = web.Application()
    site.router.add_get("/", get)
    server = TestServer(site)
    await server.start_server()
    one = AskedLogin(REPOSITORY, str(server.make_url("/")), 5.0)
    try:
        if found is None:
            with pytest.raises(SourceUnavailable, match="no lines username="):
                await one.get()
        else:
            assert await one.get() == (Login("https://git.example.com", *found),)
    finally:
        await server.close()


async def test_the_most_specific_stored_login_counts(tmp_path: Path) -> None:
    """The form of git-credential-store(1); other lines are none."""
    stored = tmp_path / "stored"
    stored.write_text(
        "https://bob:all@git.example.com\n\n# a line\nhttps://ada:p%40ss@git.example.com/team/dags.git\nssh://a:b@c\n"
    )
    found = await StoredLogins(str(stored)).get()
    pair = base64.b64encode(b"ada:p@ss").decode()
    assert git_logins.basic_header(found, REPOSITORY) == {"Authorization": f"Basic {pair}"}
    (other,) = [one for one in found if one.is_for("https://git.example.com/team/dags.git2")]
    assert other.user == "bob"
    assert git_logins.basic_header(found, "https://elsewhere.example.com/") == {}
    stored.unlink()
    with pytest.raises(SourceUnavailable, match="No such file"):
        await StoredLogins(str(stored)).get()


@pytest.mark.parametrize("content", ["", "no cookies"])
def test_a_file_without_cookies_is_said(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cookies"
    path.write_text(content)
    with pytest.raises(SourceUnavailable, match="cannot read the cookies"):
        git_logins.cookie_header(str(path), REPOSITORY)
