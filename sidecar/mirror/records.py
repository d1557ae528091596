"""What a source is known to have: the names and digests of its units, and contents only until they are published."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sidecar import _errors
from sidecar.mirror.states import Blob, State, Unit, digest_of
from sidecar.volume.publish import models


@dataclass(slots=True)
class File:
    """A file of a unit: what changes with its content, and the content until it is published."""

    digest: str
    """Empty where the content is what is published under this name."""
    blob: Blob | None


@dataclass(slots=True)
class UnitRecord:
    """A unit, and why it is not published as it is."""

    version: str
    created: float
    files: dict[str, File]
    problem: str | None = None
    """Why its names cannot be published, or why the gate refuses it."""
    good: Collection[str] | None = None
    """The files that were published of it last: what stays if it is refused. None where that is not known, after a start."""


class MissingContent(Exception):
    """The contents of a unit are needed that were not kept: the source must be read anew."""


class SourceRecord:
    """The accepted state of one source."""

    def __init__(self, name: str, into: str = "") -> None:
        self.name = name
        self.prefix = f"{into.strip('/')}/" if into.strip("/") else ""
        self.units: dict[str, UnitRecord] = {}
        self.is_complete = False
        """Whether a whole state was accepted: before that, nothing of the source may be removed."""
        self.is_settled = False
        """Whether nothing of it is being fetched for the first time."""
        self.order: int | None = None
        self.changed_at: float | None = None

    def file_count(self, state: State) -> int:
        """Return the number of files in a state, those of unchanged units included."""
        return sum(
            len(unit.files) if unit.files is not None else len(self._known(name, unit).files)
            for name, unit in state.units.items()
        )

    def overlaps(self, other: SourceRecord) -> bool:
        """Return whether the directories of two sources are the same, or one is in the other."""
        return self.prefix.startswith(other.prefix) or other.prefix.startswith(self.prefix)

    @property
    def files(self) -> int:
        """The number of files of the accepted state."""
        return sum(len(unit.files) for unit in self.units.values())

    def accept(self, state: State) -> None:
        """Take over a state.

        Raises:
            MissingContent: a unit without files is not the one that is known.
        """
        self.units = {name: self._take(name, unit) for name, unit in state.units.items()}
        self.is_complete, self.is_settled = True, state.is_settled
        self.order, self.changed_at = state.order, state.changed_at

    def _take(self, name: str, unit: Unit) -> UnitRecord:
        known = self.units.get(name)
        if known is not None and known.version == unit.version:
            if unit.files is not None and any(one.blob is None for one in known.files.values()):
                known.files = _files(self.prefix, unit.files)
            return known
        if unit.files is None:
            raise MissingContent(name)
        record = UnitRecord(unit.version, unit.created, _files(self.prefix, unit.files))
        if known is not None:
            record.good = known.good
        record.problem = _problem_with_names(record.files)
        return record

    def _known(self, name: str, unit: Unit) -> UnitRecord:
        known = self.units.get(name)
        if known is None or known.version != unit.version:
            raise MissingContent(name)
        return known


def release(units: Iterable[UnitRecord]) -> None:
    """Forget the contents of units that are published, or refused."""
    for unit in units:
        for file in unit.files.values():
            file.blob = None


def in_order(records: Sequence[SourceRecord]) -> Iterator[tuple[str, UnitRecord]]:
    """Yield the units of all sources, the oldest first: the order in which names are given out.

    Each comes with the name that messages call it; the only unit of a source has that of the source.
    """
    found = [
        (unit.created, position, name, record.name, unit)
        for position, record in enumerate(records)
        for name, unit in record.units.items()
    ]
    for _, _, name, source, unit in sorted(found, key=lambda one: one[:3]):
        yield name or source, unit


def _files(prefix: str, files: Mapping[str, Blob | None]) -> dict[str, File]:
    return {
        prefix + name: File("" if blob is None else digest_of(blob), blob)
        for name, blob in files.items()
    }


def _problem_with_names(files: Mapping[str, File]) -> str | None:
    try:
        models.check_names(files)
    except _errors.NameRefused as error:
        return str(error)
    return None
