"""The set on the volume, made of the units of all sources: names given out, contents validated, only changes published."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from sidecar import _errors
from sidecar.mirror import records
from sidecar.mirror.records import File, SourceRecord, UnitRecord
from sidecar.process import metrics
from sidecar.volume.content.metadata import Metadata, is_publisher_name
from sidecar.volume.volume import PublishSource, Volume

_log = logging.getLogger(__name__)


class Composition:
    """What was published, by file names and digests."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._published: dict[str, str] = {}
        """The digest of each file of the set; of those found at the start, it is the version of the content."""
        self.version: str | None = None
        self.refused: dict[str, str] = {}
        """Why units are not published as their source has them."""

    async def load(self) -> None:
        """Take over the set that is on the volume."""
        try:
            snapshot = await self._volume.unverified_snapshot()
        except _errors.NothingPublished:
            self._published, self.version = {}, None
            return
        self._published, self.version = dict(snapshot.versions()), snapshot.version

    def files_in(self, record: SourceRecord) -> int:
        """Return the number of published files in the directory of a source."""
        return sum(name.startswith(record.prefix) for name in self._published)

    async def publish(self, sources: Sequence[SourceRecord]) -> None:
        """Publish what was accepted of all sources, as one version.

        Raises:
            PublishError, PublishUncertain, ReadError: the volume refuses it; contents are kept for the next try.
            SourceUnavailable: a content could not be fetched.
        """
        units = list(records.in_order(sources))
        contents = _Contents()
        chosen = await self._choose(units, contents)
        changes: dict[str, PublishSource | None] = {
            name: await contents.get(name, file)
            for name, file in chosen.items()
            if self._is_new(name, file)
        }
        if all(one.is_complete for one in sources):
            changes |= {name: None for name in self._published if name not in chosen}
        if changes:
            await self._update(changes, chosen, _describe(sources))
            for one in sources:
                if one.changed_at is not None:
                    metrics.MIRROR_LAG_SECONDS.set(max(time.time() - one.changed_at, 0.0))
        records.release(unit for _, unit in units)

    async def _update(
        self,
        changes: Mapping[str, PublishSource | None],
        chosen: Mapping[str, File],
        metadata: Metadata | None,
    ) -> None:
        match = f'"{self.version}"' if self.version is not None else None
        try:
            done = await self._volume.update(changes, if_match=match, metadata=metadata)
        except _errors.VersionConflict:
            # Somebody else has published: start from what is there now.
            await self.load()
            raise
        metrics.MIRROR_VERSIONS_TOTAL.labels("published" if done.changed else "unchanged").inc()
        self.version = done.version
        for name, content in changes.items():
            if content is None:
                self._published.pop(name, None)
            else:
                self._published[name] = chosen[name].digest

    def _is_new(self, name: str, file: File) -> bool:
        return self._published.get(name) != file.digest

    async def _choose(
        self, units: Sequence[tuple[str, UnitRecord]], contents: _Contents
    ) -> dict[str, File]:
        """Choose the files of the set: of each unit all, or those that were published of it last, or none."""
        refused: dict[str, str] = {}
        names = _Names()
        for name, unit in units:
            files = self._present(unit.files)
            if unit.problem is None and (problem := names.conflict(files)) is not None:
                refused[name] = problem
                unit.good = ()
                continue
            if unit.problem is None:
                unit.problem = await self._validate(files, contents)
            if unit.problem is None:
                names.give(name, files)
                unit.good = tuple(files)
                continue
            refused[name] = unit.problem
            good = files if unit.good is None else unit.good
            kept = {
                file: File(self._published[file], None) for file in good if file in self._published
            }
            if names.conflict(kept) is None:
                names.give(name, kept)
                unit.good = tuple(kept)
            else:
                unit.good = ()
        for name in refused.keys() - self.refused.keys():
            metrics.MIRROR_VERSIONS_TOTAL.labels("refused").inc()
            _log.warning(
                "the unit %s is refused: %s",
                name,
                refused[name],
                extra={"event": "mirror.unit_refused"},
            )
        self.refused = refused
        return names.files

    def _present(self, files: Mapping[str, File]) -> dict[str, File]:
        """Return the files of a unit; one without a content of its own is what is published, or is left out."""
        return {
            name: file if file.digest else File(self._published[name], None)
            for name, file in files.items()
            if file.digest or name in self._published
        }

    async def _validate(self, files: Mapping[str, File], contents: _Contents) -> str | None:
        """Have the gate validate the new files of a unit; return why it is refused."""
        for name, file in files.items():
            if self._is_new(name, file):
                try:
                    await self._volume.validate(name, await contents.get(name, file))
                except (_errors.ContentRefused, _errors.NameRefused) as error:
                    return str(error)
        return None


def _describe(sources: Sequence[SourceRecord]) -> Metadata | None:
    """Return the metadata of a set: its publisher is the source, or all of them; None if they make no such name."""
    names = ", ".join(one.name for one in sources)
    return Metadata(published_by=names) if is_publisher_name(names) else None


class _Names:
    """Which file names are given out, and to which unit."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self._units: dict[str, str] = {}
        self._directories: dict[str, str] = {}

    def conflict(self, files: Mapping[str, File]) -> str | None:
        """Return why these names cannot be given out, None if they can."""
        for name in files:
            owner = self._units.get(name, self._directories.get(name))
            above = next((self._units[one] for one in _parents(name) if one in self._units), owner)
            if above is not None:
                return f"cannot publish {name}: an older unit has that name ({above})"
        return None

    def give(self, unit: str, files: Mapping[str, File]) -> None:
        """Give the names out."""
        for name, file in files.items():
            self.files[name] = file
            self._units[name] = unit
            for one in _parents(name):
                self._directories[one] = unit


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


class _Contents:
    """The contents of one publish: each is fetched at most once."""

    def __init__(self) -> None:
        self._fetched: dict[str, PublishSource] = {}

    async def get(self, name: str, file: File) -> PublishSource:
        """Return the content of a file.

        Raises:
            MissingContent: it was published or refused before, and not kept.
            SourceUnavailable: it could not be fetched.
        """
        if isinstance(file.blob, bytes):
            return file.blob
        if name not in self._fetched:
            if file.blob is None:
                raise records.MissingContent(name)
            self._fetched[name] = await file.blob.fetch()
        return self._fetched[name]
