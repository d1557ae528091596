"""A client of event streams, by the letter of https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """What a browser would dispatch."""

    type: str
    data: Any
    id: str


@dataclass
class Parser:
    """Sections 9.2.5 and 9.2.6: lines, fields, and when they become an event."""

    last_event_id: str = ""
    retry: int | None = None
    comments: int = 0
    _rest: str = ""
    _type: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, data: bytes) -> list[Event]:
        *lines, self._rest = (self._rest + data.decode()).split("\n")
        return [event for line in lines if (event := self._line(line.rstrip("\r"))) is not None]

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                self.comments += 1
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self.last_event_id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry = int(value)
            case _:
                pass
        return None

    def _dispatch(self) -> Event | None:
        type_, data = self._type or "message", "\n".join(self._data)
        self._type, self._data = "", []
        return Event(type_, json.loads(data), self.last_event_id) if data else None


class EventSource:
    """A connection to an event stream, over HTTP/1.1 with chunks or HTTP/1.0 without."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.parser = Parser()
        self.head = b""
        self.ended = False
        """The stream has come to its end, and was not cut off."""
        self._ready: list[Event] = []

    @classmethod
    async def open(
        cls, port: int, *, last: str | None = None, version: str = "1.1", limit: int = 1 << 16
    ) -> EventSource:
        one = cls(*await asyncio.open_connection("127.0.0.1", port, limit=limit))
        lines = [f"GET /events HTTP/{version}", "Host: a", "Accept: text/event-stream"]
        if last is not None:
            lines.append(f"Last-Event-ID: {last}")
        one.writer.write("\r\n".join([*lines, "", ""]).encode())
        async with asyncio.timeout(10):
            one.head = await one.reader.readuntil(b"\r\n\r\n")
        return one

    async def next(self, timeout: float = 10.0) -> Event | None:
        """Return the next event, None at the end of the stream."""
        async with asyncio.timeout(timeout):
            while not self._ready:
                data = await self._read()
                if not data:
                    return None
                self._ready = self.parser.feed(data)
        return self._ready.pop(0)

    async def _read(self) -> bytes:
        if b"chunked" not in self.head:
            data = await self.reader.read(1 << 16)
            self.ended = not data
            return data
        line = await self.reader.readline()
        data = await self.reader.readexactly(int(line or b"0", 16))
        self.ended = line.strip() == b"0"
        await self.reader.readline()
        return data

    def close(self) -> None:
        self.writer.transport.abort()
