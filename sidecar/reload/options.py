"""The options of a reloader: names, types, defaults and checks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from sidecar import _errors
from sidecar.process import arguments, retry
from sidecar.reload.change import Action
from sidecar.volume.watch import options as watch_options
from sidecar.volume.watch.watch import Watch

if TYPE_CHECKING:
    from sidecar.reload.expansion import Expansion
    from sidecar.reload.rollback import Rollback
    from sidecar.reload.rollout import StopUrl

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


class ReloaderOptions(watch_options.Options, total=False):
    """The options of a reloader, and those of its watch; see `sidecar.reload.run`."""

    parallel: bool
    confirm_url: str | None
    confirm_timeout: float
    rollback_on_failure: bool
    state_file: str | os.PathLike[str] | None
    expand_to: str | os.PathLike[str] | None
    storage: Mapping[str, Any] | None
    splay: float
    stop_url: str | None
    ca_file: str | os.PathLike[str] | None
    token_file: str | os.PathLike[str] | None
    user: str | None
    password_file: str | os.PathLike[str] | None
    initial: bool
    once: bool
    drain_timeout: float
    backoff: Callable[[int], float]


@dataclass(frozen=True, slots=True)
class ReloaderConfig:
    """The checked options, and what they have made. What is not asked for is None, and was not imported."""

    watch: Watch[None]
    actions: tuple[Action, ...]
    parallel: bool
    confirmation: Action | None
    confirm_timeout: float
    rollback: Rollback | None
    expansion: Expansion | None
    splay: float
    stop: StopUrl | None
    initial: bool
    once: bool
    drain_timeout: float
    backoff: Callable[[int], float]


def exponential_backoff(attempt: int) -> float:
    """Return the seconds to wait after the attempt of this number, from 0 on: up to 0.5, 1, 2, … 30, and at least half of it."""
    return retry.exponential_backoff(attempt, _FIRST_PAUSE, _LONGEST_PAUSE)


def check(
    path: str | os.PathLike[str],
    actions: Sequence[Action],
    *,
    parallel: bool = False,
    confirm_url: str | None = None,
    confirm_timeout: float = 10.0,
    rollback_on_failure: bool = False,
    state_file: str | os.PathLike[str] | None = None,
    expand_to: str | os.PathLike[str] | None = None,
    storage: Mapping[str, Any] | None = None,
    splay: float = 0.0,
    stop_url: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    token_file: str | os.PathLike[str] | None = None,
    user: str | None = None,
    password_file: str | os.PathLike[str] | None = None,
    initial: bool = True,
    once: bool = False,
    drain_timeout: float = 10.0,
    backoff: Callable[[int], float] = exponential_backoff,
    **options: Unpack[watch_options.Options],
) -> ReloaderConfig:
    """Check the arguments of a reloader, and fill in the defaults.

    Raises:
        ConfigError: an argument is invalid.
    """
    watch: Watch[None] = Watch(path, **options)
    if not actions:
        raise _errors.ConfigError("there is nothing to do: give at least one action")
    arguments.check_flag("initial", initial)
    if arguments.check_flag("once", once) and not initial:
        raise _errors.ConfigError("once applies the present version: it needs initial")
    arguments.check_plain_function("backoff", backoff, "a function from a number to seconds")
    arguments.check_seconds("confirm_timeout", confirm_timeout, zero=False)
    confirmation, stop = None, None
    if confirm_url is not None or stop_url is not None:
        # Who asks nobody needs no HTTP client.
        from sidecar.reload import client, rollout
        from sidecar.reload.confirmation import Confirmation

        access = client.Access(ca_file, token_file, user, password_file)
        access.check()
        if confirm_url is not None:
            confirmation = Confirmation(confirm_url, confirm_timeout, access)
        if stop_url is not None:
            stop = rollout.StopUrl(stop_url, rollout.pod_name(), access)
    expansion = None
    if expand_to is not None:
        from sidecar.reload.expansion import Expansion

        expansion = Expansion(watch.path, os.fspath(expand_to), storage)
    rollback = None
    if arguments.check_flag("rollback_on_failure", rollback_on_failure):
        from sidecar.reload.rollback import Rollback

        rollback = Rollback(watch.path, state_file, storage)
    return ReloaderConfig(
        watch,
        tuple(actions),
        arguments.check_flag("parallel", parallel),
        confirmation,
        confirm_timeout,
        rollback,
        expansion,
        arguments.check_seconds("splay", splay),
        stop,
        initial,
        once,
        arguments.check_seconds("drain_timeout", drain_timeout),
        backoff,
    )
