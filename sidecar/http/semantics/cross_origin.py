"""Reject cross-origin requests of browsers: cross-site request forgery, DNS rebinding.

The rules are those of Go's `net/http.CrossOriginProtection` (https://pkg.go.dev/net/http#CrossOriginProtection),
applied to every request that changes state, including the GET that publishes:

    Sec-Fetch-Site    `same-origin` and `none` (typed, a bookmark) pass; browsers send it to https and localhost only
    Origin            must name the host of the request; every browser sends it with POST, PUT and DELETE
    neither           not a browser, or a GET over plain http: then `Referer`, if present, must name that host

Go compares `Origin` with `Host` byte by byte. Here case and an explicit default port make no difference:
it is the same origin (RFC 6454 section 5). Empty headers, which Go treats as absent, are refused.

Over plain http a browser does not reveal the origin of a GET for a page without referrer (`Referrer-Policy: no-referrer`).
Embedded requests (an image, a script, a fetch) are recognised by their `Accept` and refused;
a link or a frame looks like a typed URL, and passes: TLS or a token is the remedy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sidecar import _errors
from sidecar.http import handler_api, problems
from sidecar.http.semantics import bearer_auth

_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_AUTHORITY_END: Final = re.compile(r"[/?#]")


class CrossOriginProtection:
    """The cross-origin policy of an application.

    Args:
        allowed_origins: origins whose pages may change state, in addition to the application's own,
            as `https://admin.example.com`.
        allowed_hosts: host names that requests may use; one that begins with a dot includes all subdomains.
            Empty for any. Addresses and `localhost` are always allowed: DNS rebinding needs a name.

    Raises:
        ConfigError: one of them is not an origin, or not a host name.

    >>> CrossOriginProtection(["https://admin.example.com"], ["config.example.com", ".svc"])
    <CrossOriginProtection origins=1 hosts=2>
    """

    def __init__(
        self, allowed_origins: Collection[str] = (), allowed_hosts: Collection[str] = ()
    ) -> None:
        self._origins = frozenset(map(_parse_origin, allowed_origins))
        self._hosts = frozenset(map(_parse_host, allowed_hosts))

    def __repr__(self) -> str:
        return f"<CrossOriginProtection origins={len(self._origins)} hosts={len(self._hosts)}>"

    def middleware(self) -> Middleware:
        """Return a middleware that rejects requests before the handler, and before the body is read."""

        @handler_api.cache_safe
        @web.middleware
        async def protect(request: web.Request, handler: Handler) -> web.StreamResponse:
            found = request.match_info.handler
            if self._hosts and not bearer_auth.is_public(found):
                self.check_host(_get_host(request))
            if bearer_auth.is_change(request.method, found):
                self.check(request)
            return await handler(request)

        return protect

    def check(self, request: web.BaseRequest) -> None:
        """Return if a state-changing request is allowed.

        Raises:
            Problem: 403, a browser sends it for a page of another origin, or as a prefetch.
        """
        headers = request.headers
        if "prefetch" in headers.get("Sec-Purpose", headers.get("Purpose", "")).lower():
            raise problems.Problem(
                "cross-site", "a browser sends this in advance; nothing was changed"
            )
        origins = headers.getall("Origin", ())
        site = headers.getall("Sec-Fetch-Site", ())
        if site:
            allowed = all(one in ("same-origin", "none") for one in site)
        elif origins:
            allowed = all(_has_host(one, _get_host(request)) for one in origins)
        elif "Referer" in headers:
            allowed = all(self._may_refer(one, request) for one in headers.getall("Referer"))
        else:
            allowed = not _is_embedded(request)
        if not allowed and not (origins and self._origins.issuperset(map(str.lower, origins))):
            raise problems.Problem(
                "cross-site",
                "a browser sends this for a page of another origin, which must not change anything here;"
                " nothing was changed (open the address directly,"
                " or allow the origin of that page by --allowed-origins)",
            )

    def check_host(self, host: str) -> None:
        """Return if the host name of a request is allowed.

        Raises:
            Problem: 421, the name is not one of `allowed_hosts`.
        """
        name = _normalize_host_name(host)
        if (
            name in self._hosts
            or any(one[0] == "." and name.endswith(one) for one in self._hosts)
            or name == "localhost"
            or name.endswith(".localhost")
            or _is_address(name)
        ):
            return
        raise problems.Problem(
            "misdirected", f"{name!r} is no name of this service (name it by --allowed-hosts)"
        )

    def _may_refer(self, referer: str, request: web.BaseRequest) -> bool:
        if _has_host(referer, _get_host(request)):
            return True
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(referer)) if _is_url(referer) else ""
        return origin.lower() in self._origins


def _get_host(request: web.BaseRequest) -> str:
    """Return the host and port of a request; those of an absolute URI take precedence over `Host`.

    See RFC 9112 section 3.2.2. `request.host` lacks the port of an absolute URI.
    """
    target = request.raw_path
    if not target.startswith("/") and "://" in target:
        return _AUTHORITY_END.split(target.partition("://")[2], 1)[0]
    return request.host


def _has_host(url: str, host: str) -> bool:
    """Return whether a URL or an origin has this host and port. The scheme is unknown here, as in Go's.

    Browsers omit the default port of a scheme in both; some clients and proxies write it.
    """
    if not _is_url(url):
        return False
    scheme, netloc, host = urlsplit(url).scheme, urlsplit(url).netloc.lower(), host.lower()
    return host in (netloc, f"{netloc}{_DEFAULT_PORTS.get(scheme, '')}")


def _is_url(text: str) -> bool:
    try:
        return bool(urlsplit(text).netloc)
    except ValueError:
        return False


def _is_embedded(request: web.BaseRequest) -> bool:
    """Return whether a browser requests an embedded resource without a referrer. All browsers send `Accept-Language`."""
    headers = request.headers
    return (
        headers.get("User-Agent", "").startswith("Mozilla/")
        and "Accept-Language" in headers
        and "text/html" not in headers.get("Accept", "")
    )


def _normalize_host_name(host: str) -> str:
    """Return the normalised host name of a `Host`, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def parse_origin(text: str) -> str:
    """Return an origin as browsers write it: in lower case, without the default port of its scheme.

    Raises:
        ConfigError: it is not an origin.

    >>> parse_origin("https://App.example.com:443")
    'https://app.example.com'
    """
    origin = _parse_origin(text)
    return origin.removesuffix(_DEFAULT_PORTS[origin.partition(":")[0]])


def _parse_origin(text: str) -> str:
    scheme, _, rest = text.lower().partition("://")
    if scheme not in ("http", "https") or not _has_host(text, rest) or "@" in rest:
        raise _errors.ConfigError(
            f"{text!r} is no origin: write scheme, host and port as browsers do, as in https://admin.example.com"
        )
    return text.lower()


def _parse_host(text: str) -> str:
    name = text.lower().rstrip(".")
    if not name.strip(".") or any(sign in name for sign in "/:@* \t"):
        raise _errors.ConfigError(
            f"{text!r} is no name of a host: write it without scheme and port, as in config.example.com;"
            " .example.com stands for all names beneath it"
        )
    return name
