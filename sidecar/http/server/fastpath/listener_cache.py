"""The cache of one listener."""

from __future__ import annotations

from sidecar.http.server.fastpath.response_cache import ResponseCache
from sidecar.http.server.fastpath.waitlists import Waitlists
from sidecar.http.server.fastpath.write_templates import WriteTemplates


class ListenerCache(ResponseCache):
    """Cached responses, write templates and waitlists of one listener.

    The cache is per listener: the same bytes may mean something else on another port, with or without TLS.
    It subclasses `ResponseCache` instead of holding one, which saves an attribute lookup per request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.write_templates = WriteTemplates(self.seen, self.date_header)
        self.poll_responses = ResponseCache()
        """Responses to long polls that have waited: they carry `Preference-Applied`."""
        self.waitlists = Waitlists(self.seen, self.poll_responses)
