"""Publish, watch, serve and collect the files that containers of one Pod share.

    await volume.publish({...})                  one set of files, whole and durable
    async for snapshot in sidecar.watch(path)    every version once, the newest first
    sidecar.serve(app)                           over HTTP, with health, metrics and a clean end
    sidecar.run(main())                          the program around it: signals, drain, exit status

The names below are public, and so are those of `sidecar.sync` (the same without an event loop),
`sidecar.logs`, `sidecar.reload` and `sidecar.testing`; every other module may change.
Each is imported when it is first used: a program that only publishes never loads a web server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar import _exports
from sidecar._version import __version__ as __version__

if TYPE_CHECKING:
    from sidecar._errors import ConfigError as ConfigError
    from sidecar._errors import ContentAltered as ContentAltered
    from sidecar._errors import ContentRefused as ContentRefused
    from sidecar._errors import ContentTooLarge as ContentTooLarge
    from sidecar._errors import FileMissing as FileMissing
    from sidecar._errors import NameRefused as NameRefused
    from sidecar._errors import NameTaken as NameTaken
    from sidecar._errors import NothingPublished as NothingPublished
    from sidecar._errors import PublishError as PublishError
    from sidecar._errors import PublishUncertain as PublishUncertain
    from sidecar._errors import ReadError as ReadError
    from sidecar._errors import SidecarError as SidecarError
    from sidecar._errors import UnknownVersion as UnknownVersion
    from sidecar._errors import VersionConflict as VersionConflict
    from sidecar._errors import VolumeFull as VolumeFull
    from sidecar._errors import VolumeUnavailable as VolumeUnavailable
    from sidecar.http.apps.files import files_app as files_app
    from sidecar.http.apps.follow import LATEST as LATEST
    from sidecar.http.apps.follow import Latest as Latest
    from sidecar.http.apps.follow import follow as follow
    from sidecar.http.apps.reader import reader_app as reader_app
    from sidecar.http.apps.writer import writer_app as writer_app
    from sidecar.http.ops import health_routes as health_routes
    from sidecar.http.ops import metrics_routes as metrics_routes
    from sidecar.http.probes import health_asgi as health_asgi
    from sidecar.http.server.serve import serve as serve
    from sidecar.process.health import Health as Health
    from sidecar.process.lifecycle import every as every
    from sidecar.process.lifecycle import run as run
    from sidecar.volume.content.metadata import Metadata as Metadata
    from sidecar.volume.content.snapshot import Content as Content
    from sidecar.volume.content.snapshot import Snapshot as Snapshot
    from sidecar.volume.publish.history import Version as Version
    from sidecar.volume.publish.models import Publication as Publication
    from sidecar.volume.publish.upload import Upload as Upload
    from sidecar.volume.validation.gate import Gate as Gate
    from sidecar.volume.volume import Volume as Volume
    from sidecar.volume.volume import publish_file as publish_file
    from sidecar.volume.watch.group import WatchGroup as WatchGroup
    from sidecar.volume.watch.group import watch as watch
    from sidecar.volume.watch.watch import Watch as Watch


_MODULES = {
    # Publish and read
    "Volume": "sidecar.volume.volume",
    "publish_file": "sidecar.volume.volume",
    "Upload": "sidecar.volume.publish.upload",
    "Publication": "sidecar.volume.publish.models",
    "Version": "sidecar.volume.publish.history",
    "Gate": "sidecar.volume.validation.gate",
    "Snapshot": "sidecar.volume.content.snapshot",
    "Content": "sidecar.volume.content.snapshot",
    "Metadata": "sidecar.volume.content.metadata",
    # Follow
    "watch": "sidecar.volume.watch.group",
    "WatchGroup": "sidecar.volume.watch.group",
    "Watch": "sidecar.volume.watch.watch",
    # Serve
    "follow": "sidecar.http.apps.follow",
    "LATEST": "sidecar.http.apps.follow",
    "Latest": "sidecar.http.apps.follow",
    "files_app": "sidecar.http.apps.files",
    "health_routes": "sidecar.http.ops",
    "metrics_routes": "sidecar.http.ops",
    "health_asgi": "sidecar.http.probes",
    "Health": "sidecar.process.health",
    "reader_app": "sidecar.http.apps.reader",
    "writer_app": "sidecar.http.apps.writer",
    "serve": "sidecar.http.server.serve",
    # Run
    "run": "sidecar.process.lifecycle",
    "every": "sidecar.process.lifecycle",
    # What can go wrong
    "SidecarError": "sidecar._errors",
    "PublishError": "sidecar._errors",
    "VolumeFull": "sidecar._errors",
    "VolumeUnavailable": "sidecar._errors",
    "ContentRefused": "sidecar._errors",
    "ContentTooLarge": "sidecar._errors",
    "VersionConflict": "sidecar._errors",
    "NameRefused": "sidecar._errors",
    "NameTaken": "sidecar._errors",
    "FileMissing": "sidecar._errors",
    "PublishUncertain": "sidecar._errors",
    "ReadError": "sidecar._errors",
    "NothingPublished": "sidecar._errors",
    "ContentAltered": "sidecar._errors",
    "UnknownVersion": "sidecar._errors",
    "ConfigError": "sidecar._errors",
}

__all__ = [*_MODULES, "__version__"]  # noqa: PLE0604 (a name twice is a name that can differ)

__getattr__, __dir__ = _exports.lazy(__name__, _MODULES)
