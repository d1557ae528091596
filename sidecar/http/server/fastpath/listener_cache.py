"""All that the lane knows at one place that is listened at."""

from __future__ import annotations

from sidecar.http.server.fastpath.response_cache import ResponseCache
from sidecar.http.server.fastpath.waitlists import Waitlists
from sidecar.http.server.fastpath.write_templates import WriteTemplates


class ListenerCache(ResponseCache):
    """The answers of one place, the forms of writes there, and the rooms of those who wait.

    One place: the same bytes may mean something else at another port, with or without TLS.
    It is the answers, and does not have them: a look into them must not cost one step more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forms = WriteTemplates(self.seen, self.second)
        self.told = ResponseCache()
        """The answers to those who have waited: they say that they were late (`Preference-Applied`)."""
        self.rooms = Waitlists(self.seen, self.told)
