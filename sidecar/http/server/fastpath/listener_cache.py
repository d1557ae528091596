"""All that the lane knows at one place that is listened at."""

from __future__ import annotations

from sidecar.http.server.fastpath.response_cache import Answers
from sidecar.http.server.fastpath.waitlists import Rooms
from sidecar.http.server.fastpath.write_templates import Forms


class Lane(Answers):
    """The answers of one place, the forms of writes there, and the rooms of those who wait.

    One place: the same bytes may mean something else at another port, with or without TLS.
    It is the answers, and does not have them: a look into them must not cost one step more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forms = Forms(self.seen, self.second)
        self.told = Answers()
        """The answers to those who have waited: they say that they were late (`Preference-Applied`)."""
        self.rooms = Rooms(self.seen, self.told)
