"""Remove secrets from URLs that appear in messages, names and log lines."""

from __future__ import annotations

import re

_VALUE = re.compile(r"=[^&;]*")


def redact_url(url: str) -> str:
    """Return a URL without credentials and without the values of its query.

    A query often contains an API key. The name of a sink in the checkpoint does not contain it either:
    a new key must not create a new sink, to which everything would be delivered again.

    >>> redact_url("https://ada:secret@logs.example.com/in?api_key=secret&source=shop")
    'https://logs.example.com/in?api_key=***&source=***'
    """
    rest, question, query = url.partition("?")
    scheme, slashes, place = rest.partition("://")
    return f"{scheme}{slashes}{place.rpartition('@')[2]}{question}{_VALUE.sub('=***', query)}"
