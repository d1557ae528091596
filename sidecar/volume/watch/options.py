"""The options of a watch besides path, schema and stop event: names, types, defaults and checks, shared by all callers."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypedDict, cast, get_args

from sidecar.process import arguments
from sidecar.volume.content.filters import EDITORS, Filter
from sidecar.volume.content.snapshot import MAX_SIZE
from sidecar.volume.validation import signatures
from sidecar.volume.watch.thread import WatchMode


class _Common(TypedDict, total=False):
    watch: WatchMode
    recheck: float
    include: Collection[str]
    exclude: Collection[str]
    quiet: float | None
    verify_key: signatures.KeyFiles


class Options(_Common, total=False):
    """The options of a watch of any path; see `sidecar.Watch`."""

    max_size: int | str


class VolumeOptions(_Common, total=False):
    """The options of a watch of a volume; `max_size` None means that of the volume."""

    max_size: int | str | None


@dataclass(frozen=True, slots=True)
class Checked:
    """The checked options of a watch."""

    path: str
    watch: WatchMode
    recheck: float
    limit: int
    """Maximum bytes to read."""
    wanted_names: Filter
    quiet: float | None
    verifier: signatures.Verifier | None


def check(
    path: str | os.PathLike[str],
    *,
    schema: object = None,
    watch: WatchMode = "auto",
    recheck: float = 1.0,
    max_size: int | str = MAX_SIZE,
    include: Collection[str] = (),
    exclude: Collection[str] = EDITORS,
    quiet: float | None = None,
    verify_key: signatures.KeyFiles = (),
) -> Checked:
    """Check the arguments of a watch, and fill in the defaults.

    Raises:
        ConfigError: an argument is invalid.
    """
    arguments.check_seconds("recheck", recheck, zero=False)
    arguments.check_choice("watch", watch, get_args(WatchMode))
    limit = arguments.check_size("max_size", max_size)
    arguments.check_strings("include", include)
    arguments.check_strings("exclude", exclude)
    if quiet is not None:
        arguments.check_seconds("quiet", quiet)
    if schema is not None:
        arguments.check_plain_function("schema", schema, "a function from a snapshot to a value")
    names = Filter(tuple(include), tuple(exclude))
    verifier = signatures.make_verifier("verify_key", verify_key)
    return Checked(
        arguments.check_path("path", path), watch, recheck, limit, names, quiet, verifier
    )


def of_volume(
    options: VolumeOptions, max_size: int | str, verify_key: signatures.KeyFiles = ()
) -> Options:
    """Return the options of a watch of a volume with this `max_size` and this `verify_key`, unless they have others."""
    given = options.get("max_size")
    whole = {"verify_key": verify_key, **options, "max_size": max_size if given is None else given}
    return cast("Options", whole)
