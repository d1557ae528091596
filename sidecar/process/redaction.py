"""Remove secrets from URLs that appear in messages, names and log lines."""

from __future__ import annotations

import re

_VALUE = re.compile(r"=[^&;]*|(?<![^&;])[^=&;]+(?![^&;])")


def redact_url(url: str) -> str:
    """Return a URL without credentials and without the values of its query.

    A query often contains an API key. The name of a sink in the checkpoint does not contain it either:
    a new key must not create a new sink, to which everything would be delivered again.

    >>> redact_url("https://ada:secret@logs.example.com/in?api_key=secret&source=shop")
    'https://logs.example.com/in?api_key=***&source=***'
    >>> redact_url("https://hooks.example.com/@team?secret")
    'https://hooks.example.com/@team?***'
    """
    rest, question, query = url.partition("?")
    scheme, slashes, place = rest.partition("://")
    host, slash, path = place.partition("/")
    hidden = _VALUE.sub(lambda found: "=***" if found[0].startswith("=") else "***", query)
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}{question}{hidden}"
