"""As whom a git repository is read over HTTP: user and password from files, from an address, or as a GitHub App."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from http import cookiejar
from typing import NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import Request

from sidecar._errors import ConfigError
from sidecar.mirror.client import Client
from sidecar.mirror.states import SourceUnavailable
from sidecar.process.secret_file import read_secret

_MAX_FILE_BYTES = 1 << 20
_JWT_SECONDS = 540
"""Of the ten minutes that GitHub allows."""
_CLOCK_SKEW_SECONDS = 60
_RENEW_SECONDS = 300
"""How long before it expires a token is replaced."""
_FRESH_SECONDS = 60
"""How long a token is kept whatever happens."""
_SIGN_SECONDS = 10.0


class Login(NamedTuple):
    """User and password, and the addresses that they are for: those that begin with `url`."""

    url: str
    user: str
    password: str

    def is_for(self, url: str) -> bool:
        """Return whether this is to be sent to an address."""
        own, asked = urlsplit(self.url), urlsplit(url)
        place = (own.scheme, own.hostname, own.port)
        below = f"{own.path.rstrip('/')}/"
        return place == (asked.scheme, asked.hostname, asked.port) and f"{asked.path}/".startswith(below)  # fmt: skip


class Logins(Protocol):
    """Where logins come from; they are asked for before each request, so that they can be rotated."""

    async def get(self) -> Sequence[Login]:
        """Return them, the most specific addresses first. Raises `SourceUnavailable`."""

    def forget(self) -> None:
        """Note that they were refused, or may have been."""


def server_of(url: str) -> str:
    """Return the address of a server without user and path.

    >>> server_of("https://ada@git.example.com:8443/a/b.git")
    'https://git.example.com:8443'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))


def basic_header(logins: Sequence[Login], url: str) -> dict[str, str]:
    """Return the header with the first login that is for an address (RFC 7617), or none."""
    for one in logins:
        if one.is_for(url):
            pair = base64.b64encode(f"{one.user}:{one.password}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
    return {}


class NoLogin:
    """Nobody in particular."""

    async def get(self) -> Sequence[Login]:
        return ()

    def forget(self) -> None:
        return


class FileLogin:
    """A user, and a password in a file, for one server."""

    def __init__(self, url: str, user: str, password_file: str) -> None:
        self._url, self._user, self._password_file = server_of(url), user, password_file

    async def get(self) -> Sequence[Login]:
        try:
            return (Login(self._url, self._user, read_secret(self._password_file)),)
        except ValueError as error:
            raise SourceUnavailable(f"cannot read {self._url}: {error}") from error

    def forget(self) -> None:
        return


class StoredLogins:
    """The lines `https://user:password@host[/path]` of a file (git-credential-store(1)): several servers, or several repositories of one."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def get(self) -> Sequence[Login]:
        lines = _read_text(self._path).splitlines()
        found = [made for line in lines if (made := _stored(line)) is not None]
        return sorted(found, key=lambda one: -len(one.url))

    def forget(self) -> None:
        return


def _stored(line: str) -> Login | None:
    try:
        parts = urlsplit(line.strip())
        _ = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or parts.username is None or parts.password is None:
        return None
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return Login(bare, unquote(parts.username), unquote(parts.password))


class AskedLogin:
    """A login from an address, which answers lines `username=…` and `password=…`: a helper in the Pod that knows short-lived tokens."""

    def __init__(self, url: str, askpass_url: str, timeout: float) -> None:
        self._url = server_of(url)
        self._client = Client(askpass_url, timeout=timeout, max_bytes=_MAX_FILE_BYTES)

    async def get(self) -> Sequence[Login]:
        async with self._client.session():
            answer = await self._client.request("GET", self._client.url)
        lines = answer.body.decode(errors="replace").splitlines()
        found = dict(line.partition("=")[::2] for line in lines if "=" in line)
        if not found.get("username") or not found.get("password"):
            raise self._client.failed(
                self._client.url, "the answer has no lines username=… and password=…"
            )
        return (Login(self._url, found["username"], found["password"]),)

    def forget(self) -> None:
        return


class GitHubApp:
    """A GitHub App: a token of its installation, renewed five minutes before it expires.

    Its private key signs a JSON Web Token (RS256, RFC 7515) by the command `openssl`; it is read for each token.
    https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app

    Args:
        app: the client id or the id of the app.
        installation: the id of its installation.
        key_file: its private key (PEM).
    """

    def __init__(
        self, url: str, app: str, installation: str, key_file: str, *, api_url: str, timeout: float
    ) -> None:
        self._url, self._app, self._key_file = server_of(url), app, key_file
        self._client = Client(api_url, timeout=timeout, max_bytes=_MAX_FILE_BYTES)
        where = f"app/installations/{quote(installation, safe='')}/access_tokens"
        self._token_url = f"{self._client.url.rstrip('/')}/{where}"
        self._login: Login | None = None
        self._made = self._expires = 0.0

    async def get(self) -> Sequence[Login]:
        if self._login is None or time.time() > self._expires - _RENEW_SECONDS:
            self._login, self._made = await self._request_token(), time.time()
        return (self._login,)

    def forget(self) -> None:
        # Not at each attempt while the server is away: GitHub counts requests.
        if time.time() > self._made + _FRESH_SECONDS:
            self._login = None

    async def _request_token(self) -> Login:
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {await self._signed()}",
            "X-GitHub-Api-Version": "2022-11-28",
            "User-Agent": "sidecar",
        }
        async with self._client.session():
            answer = await self._client.request(
                "POST", self._token_url, headers=headers, accept=frozenset((201,))
            )
        found = self._client.parse(self._token_url, answer.body)
        try:
            token, self._expires = found["token"], _seconds(found["expires_at"])
            return Login(self._url, "x-access-token", str(token))
        except (KeyError, TypeError, ValueError):
            raise self._client.failed(self._token_url, "the answer has no token") from None

    async def _signed(self) -> str:
        """Return a JSON Web Token that says who the app is."""
        now = int(time.time())
        claims = {"iat": now - _CLOCK_SKEW_SECONDS, "exp": now + _JWT_SECONDS, "iss": self._app}
        text = f"{_base64url_json({'alg': 'RS256', 'typ': 'JWT'})}.{_base64url_json(claims)}"
        return f"{text}.{_base64url(await self._sign(text.encode()))}"

    async def _sign(self, data: bytes) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                "openssl", "dgst", "-sha256", "-sign", self._key_file, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except FileNotFoundError:
            raise SourceUnavailable(
                "cannot sign in as a GitHub App: the command openssl is not in the image"
            ) from None
        try:
            async with asyncio.timeout(_SIGN_SECONDS):
                signature, said = await process.communicate(data)
        except TimeoutError:
            signature, said = b"", b"openssl did not end"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode or not signature:
            first = said.decode(errors="replace").partition("\n")[0]
            raise SourceUnavailable(
                f"cannot sign with the key in {self._key_file} (is it an RSA key, PEM?): {first}"
            )
        return signature


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _base64url_json(value: Mapping[str, object]) -> str:
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def cookie_header(path: str, url: str) -> dict[str, str]:
    """Return the header with the cookies in a file (as curl writes it) that are for an address.

    Raises:
        SourceUnavailable: there is no such file, or it has another format.
    """
    jar, request = cookiejar.MozillaCookieJar(), Request(url)  # noqa: S310 (it is not opened)
    try:
        jar.load(path, ignore_discard=True, ignore_expires=True)
    except (OSError, cookiejar.LoadError) as error:
        raise SourceUnavailable(f"cannot read the cookies in {path}: {error}") from error
    for one in jar:
        one.expires = one.expires or None  # curl writes 0 for the end of a session
    jar.add_cookie_header(request)
    cookies = request.get_header("Cookie")
    return {"Cookie": cookies} if cookies else {}


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE_BYTES).decode(errors="replace")
    except OSError as error:
        raise SourceUnavailable(f"cannot read {path}: {error.strerror}") from error


def logins(
    url: str,
    *,
    user: str | None,
    password_file: str | None,
    credentials_file: str | None,
    askpass_url: str | None,
    github_app: tuple[str | None, str | None, str | None],
    github_api_url: str,
    timeout: float,
) -> Logins:
    """Return the one way to log in that is wanted.

    Raises:
        ConfigError: there are two, or a half of one.
    """
    given = (password_file, credentials_file, askpass_url, next(filter(None, github_app), None))
    name = os.path.basename(urlsplit(url).path) or url
    if sum(one is not None for one in given) > 1:
        raise ConfigError(
            f"{name}: give one of password_file, credentials_file, askpass_url and github_app_*"
        )
    if password_file is not None:
        return FileLogin(url, user or "git", password_file)
    if credentials_file is not None:
        return StoredLogins(credentials_file)
    if askpass_url is not None:
        return AskedLogin(url, askpass_url, timeout)
    app, installation, key_file = github_app
    if app is not None and installation is not None and key_file is not None:
        return GitHubApp(url, app, installation, key_file, api_url=github_api_url, timeout=timeout)
    if any(github_app):
        raise ConfigError(
            f"{name}: github_app_id, github_app_installation_id and github_app_key_file go together"
        )
    return NoLogin()
