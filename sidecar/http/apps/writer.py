"""The writer: publishes content over HTTP. A write is complete and durable, or fails without effect.

    GET /?content=TEXT     publishes TEXT, as in the article that this project is based on
    PUT /files/NAME        publishes the request body, streamed to the disk
    DELETE /files/NAME     deletes a file; with `?purge=1` also from the history
    GET /versions          lists earlier versions
    POST /rollback         publishes an earlier version again
    GET /files[/NAME]      returns what is published now

Every write accepts `?dry_run=1` and `Prefer: wait=SECONDS`; writes of a file accept `If-Match` and `If-None-Match`.

A GET that writes is in the article, and is what people try first, so it stays.
It has two dangers: a page of another origin makes a visitor's browser send it,
and a browser prefetches it; both are refused (see `cross_origin`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from sidecar import _errors
from sidecar.http import handler_api, health_state, ops, problems
from sidecar.http.apps import api_descriptions, files, write_request
from sidecar.http.apps.confirm import ReaderConfirmation
from sidecar.http.apps.page import assets, history, live
from sidecar.http.apps.write_health import WriteHealth
from sidecar.http.semantics import bearer_auth, cross_origin, representation, server_spans
from sidecar.http.server.recv import BufferPool
from sidecar.http.subscribe import long_poll
from sidecar.process import arguments, audit, request_context, tracing
from sidecar.volume import change_log, outcomes
from sidecar.volume.content.snapshot import MAX_SIZE
from sidecar.volume.publish import models
from sidecar.volume.publish.group_commit import Outcome
from sidecar.volume.publish.models import Publication
from sidecar.volume.validation import signatures
from sidecar.volume.validation.gate import Gate, Validate, make_gate
from sidecar.volume.validation.signatures import KeyFiles
from sidecar.volume.volume import (
    FILE_MODE,
    KEEP_BYTES,
    KEEP_DELETED_FILES,
    KEEP_VERSIONS,
    Durability,
    Volume,
    too_large,
)

DRY_RUN: Final = "Sidecar-Dry-Run"
"""The header of a response to `?dry_run=1`."""


def writer_app(
    path: str | os.PathLike[str],
    *,
    gate: Gate | Mapping[str, Any] | Validate | None = None,
    max_size: int | str = MAX_SIZE,
    mode: int = FILE_MODE,
    group: int | None = None,
    keep: int = KEEP_VERSIONS,
    keep_bytes: int | str = KEEP_BYTES,
    keep_deleted: int = KEEP_DELETED_FILES,
    volume_budget: int | str | None = None,
    verify_key: KeyFiles = (),
    durability: Durability = "full",
    confirm: str | None = None,
    confirm_ca: str | os.PathLike[str] | None = None,
    token_file: str | os.PathLike[str] | None = None,
    read_token_file: str | os.PathLike[str] | None = None,
    allowed_origins: Collection[str] = (),
    allowed_hosts: Collection[str] = (),
    ui: bool = True,
) -> web.Application:
    """Return the writer of a file or a directory as an aiohttp application.

    At its start it creates the directory (mode 0755) and, if `path` is a missing file, an empty one.

    Args:
        path: the file; or the directory, if it exists or ends with `/`: it has no content of its own
            (`GET /?content=` responds with 400), only files.
        gate: validates each content before it is published, as for `sidecar.Volume`.
        max_size: largest content in bytes (`"64Mi"` is accepted); a larger one gets 413.
        mode: permissions of the files.
        group: their group, by number.
        keep: versions in the history of each file.
        keep_bytes: bytes that older versions may take together.
        keep_deleted: deleted files whose older versions are kept.
        volume_budget: bytes that the directory may take, as for `sidecar.Volume`; a write beyond it gets 507.
        verify_key: files with ed25519 public keys, as for `sidecar.Volume`: only content that one of them has signed
            (`Sidecar-Signature`) is published, and there is no initial file.
        durability: `none` responds before the content is on the disk, as for `sidecar.Volume`.
        confirm: the URL of the reader of this content, for `Prefer: wait=SECONDS`;
            for a file other than the one at `path`, `/files/NAME` below it.
            The first token of `read_token_file`, or else of `token_file`, is sent to that reader.
        confirm_ca: the CA (PEM) of that reader's certificate.
            Without it the CAs of the system are used, and a reader on this machine is not verified.
        token_file: a file with the bearer tokens that may read and write, one per line, `TOKEN` or `NAME: TOKEN`;
            or a directory with a file for each name, as a mounted Secret. Probes need none.
        read_token_file: a file or directory of tokens that may only read: a change gets 403.
        allowed_origins: origins whose pages may write, as `https://admin.example.com`,
            in addition to the application's own.
        allowed_hosts: host names that requests may use, against DNS rebinding; empty for any.
            `.example.com` includes all subdomains; addresses and `localhost` are always allowed, and probes are exempt.
        ui: serve `/ui`, a page that shows the content and its history, and publishes.

    Raises:
        ConfigError: an argument is invalid. A problem of the volume is not an error here:
            responses and the details of the probes report it until it is resolved.

    >>> from aiohttp import web
    >>> app = web.Application()
    >>> _ = app.add_subapp("/config/", writer_app("/tmp/shared/config", gate=Gate(format="json")))
    """
    limit = arguments.check_size("max_size", max_size)
    validator = make_gate(gate)
    tokens = bearer_auth.from_arguments(token_file, read_token_file, writes=True)
    protection = cross_origin.CrossOriginProtection(allowed_origins, allowed_hosts)
    app = web.Application(
        middlewares=[
            *([server_spans.middleware] if tracing.is_on() else []),
            problems.middleware,
            _audit_refusals,
            protection.middleware(),
            *([tokens.middleware()] if tokens else []),
        ]
    )
    directory, primary = _split_path(arguments.check_path("path", path))
    volume = Volume(
        directory,
        mode=mode,
        group=group,
        keep=keep,
        keep_bytes=keep_bytes,
        keep_deleted=keep_deleted,
        volume_budget=volume_budget,
        max_size=limit,
        gate=validator,
        verify_key=verify_key,
        durability=durability,
    )
    writer = app[WRITER] = Writer(
        volume=volume,
        primary=primary,
        max_size=limit,
        write_health=WriteHealth(
            volume,
            initial={primary: b""} if primary is not None else {},
            validation_timeout=validator.patience if validator is not None else 0.0,
        ),
        confirm=ReaderConfirmation(confirm, tokens, confirm_ca) if confirm is not None else None,
        verifies=volume.verifies,
    )
    long_poll.setup(app)
    write_health = writer.write_health
    part = f"volume {directory}"
    health_state.get_health(app).add(
        part, live=write_health.live, ready=write_health.ready, started=write_health.started
    )
    health_state.get_details(app)[part] = write_health.detail
    if tokens is not None:
        app.cleanup_ctx.append(tokens.follow)
    if writer.confirm is not None:
        app.cleanup_ctx.append(writer.confirm.run)
    app.cleanup_ctx.append(write_health.run)
    if volume_budget is not None:
        app.cleanup_ctx.append(write_health.track_usage)
    app.add_routes(
        [
            web.get("/", _get_content),
            web.get("/files", _list_files),
            web.get(f"/files/{files.NAME}", _get_file),
            web.put(f"/files/{files.NAME}", _put_file, expect_handler=write_request.defer_continue),
            web.delete(f"/files/{files.NAME}", _delete_file),
            web.get("/versions", _get_versions),
            web.post("/rollback", _post_rollback),
            *ops.ops_routes(lambda: api_descriptions.writer(token=tokens is not None, ui=ui)),
        ]
    )
    if ui:
        _add_page(app, os.fspath(path), verify_key)
    return app


def _add_page(app: web.Application, path: str, verify_key: KeyFiles) -> None:
    writer = app[WRITER]
    watched = f"{writer.volume.path}/" if writer.primary is None else path
    events = live.LiveEvents(watched, writer.max_size, verify_key)
    about: dict[str, object] = {
        "role": "writer",
        "path": path,
        "name": writer.primary,
        "events": "ui/events",
        "max_size": writer.max_size,
    }

    async def describe() -> dict[str, object]:
        return about

    async def open_volume(_: web.Request, __: str | None) -> Volume:
        return writer.volume

    app.cleanup_ctx.append(events.run)
    app.add_routes(
        [
            *assets.page_routes(assets.CONTENT_PAGE, describe),
            *history.history_routes(open_volume),
            *events.routes(),
        ]
    )


@dataclass(frozen=True)
class Writer:
    """State shared by the handlers of one writer."""

    volume: Volume
    primary: str | None
    """The file that `/?content=` publishes; None for a directory."""
    max_size: int
    write_health: WriteHealth
    confirm: ReaderConfirmation | None
    verifies: bool
    """Whether only what is signed is published."""
    buffers: BufferPool = field(default_factory=BufferPool)

    def publish_query_value(
        self, value: bytes, callback: Callable[[Outcome], None]
    ) -> Callable[[], None] | None:
        """Publish a `content` value for the fast path; None if that is not possible. See `handler_api.WriteFunction`."""
        try:
            content = write_request.decoded(value)
        except problems.Problem:
            return None

        def on_result(outcome: Outcome) -> None:
            self.write_health.end(progress, outcome if isinstance(outcome, BaseException) else None)
            callback(outcome)

        metadata = write_request.metadata()
        write = self.volume.put_with_callback(self.primary or "", content, on_result, metadata)
        if write is None:
            return None
        progress = self.write_health.begin()
        return partial(self.volume.cancel, write)


WRITER: web.AppKey[Writer] = web.AppKey("sidecar.writer", Writer)


def _attempt(handler: Handler) -> Handler:
    """Set the client for the log, and count errors that occur before the volume is reached."""

    @wraps(handler)
    async def attempted(request: web.Request) -> web.StreamResponse:
        request_context.CURRENT.set(write_request.context(request))
        try:
            return await handler(request)
        except _errors.SidecarError as error:
            outcomes.count_failure(
                error,
                _target(request),
                event=_event(request),
                dry_run=_is_dry_run(request),
                once=True,
            )
            raise

    return attempted


def _event(request: web.Request) -> outcomes.Event:
    """Return what a request attempts."""
    if request.method == "POST":
        return "rollback"
    if request.method == "DELETE":
        return "purge" if request.query.get("purge") else "delete"
    return "publish"


def _target(request: web.Request) -> str:
    """Return the path that a request changes, as far as its URL tells."""
    writer = request.app[WRITER]
    name = request.match_info.get("name")
    if name is None:
        name = "" if request.method == "POST" else writer.primary or ""
    return os.path.join(writer.volume.path, change_log.one_line(name))


def _is_dry_run(request: web.Request) -> bool:
    """Return whether a refused request was a dry run; one with an invalid flag was none."""
    try:
        return write_request.dry_run(request)
    except problems.Problem:
        return False


@handler_api.cache_safe
@web.middleware
async def _audit_refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Record changes that are refused before the volume is reached: without a valid token, from another origin, malformed."""
    try:
        return await handler(request)
    except problems.Problem as problem:
        attempted = request.method in {"PUT", "DELETE", "POST"} or "content" in request.query
        tried = _is_dry_run(request) or request.method == "HEAD"
        if audit.is_enabled() and attempted and not tried and not problem.counted:
            request_context.CURRENT.set(write_request.context(request))
            denied = problem.status in {401, 403, 421, 429}
            audit.record(
                _event(request),
                "denied" if denied else "refused",
                _target(request),
                reason=change_log.one_line(problem.detail),
            )
        raise


# Handlers, in the order of the routes


@bearer_auth.changes_state
@_attempt
async def _get_content(request: web.Request) -> web.Response:
    writer = request.app[WRITER]
    content = write_request.query_content(request)
    if content is None:
        raise problems.Problem(
            "bad-request",
            "there is no `content` in the query, so nothing was changed"
            " (publish with GET /?content=TEXT or PUT /files/NAME)",
        )
    if writer.primary is None:
        raise problems.Problem(
            "bad-request",
            f"{writer.volume.path} is a directory, so there is no one file that"
            " `content` could be published to (use PUT /files/NAME)",
        )
    name = writer.primary
    if writer.verifies:
        raise signatures.refused(
            os.path.join(writer.volume.path, name),
            "`content` of the query cannot be signed (use PUT /files/NAME with Sidecar-Signature)",
        )
    # HEAD returns the headers of a GET, and is safe: it changes nothing.
    dry_run = write_request.dry_run(request) or request.method == "HEAD"
    done = handler_api.prior_result(request)
    if done is None:
        conditions = await write_request.conditions(request, writer.volume, name)
        async with writer.write_health.attempt():
            done = await writer.volume.put(
                name,
                content,
                if_match=conditions.if_match,
                if_none_match=conditions.if_none_match,
                metadata=write_request.metadata(),
                dry_run=dry_run,
            )
    if isinstance(done, BaseException):
        raise done
    in_time, headers = await _confirm(request, name, done, dry_run=dry_run)
    if not dry_run and write_request.has_no_preconditions(request):
        handler_api.mark_writable(request, writer.publish_query_value)
    return representation.json_answer("ok", status=200 if in_time else 202, headers=headers)


async def _list_files(request: web.Request) -> web.Response:
    entries = await request.app[WRITER].volume.entries()
    return representation.build_response(request, files.listing(entries, {}))


async def _get_file(request: web.Request) -> web.Response:
    name = write_request.file_name(request)
    try:
        content = await request.app[WRITER].volume.read(name)
    except _errors.NothingPublished as error:
        raise files.no_such_file(name) from error
    return representation.build_response(request, await files.representation(content))


@_attempt
async def _put_file(request: web.Request) -> web.Response:
    writer = request.app[WRITER]
    name = write_request.file_name(request)
    dry_run = write_request.dry_run(request)
    write_request.check_body_headers(request)
    if request.content_length is not None and request.content_length > writer.max_size:
        raise _too_large(writer, name, dry_run=dry_run)
    conditions = await write_request.conditions(request, writer.volume, name)
    signature = write_request.signature(request, os.path.join(writer.volume.path, name))
    await writer.volume.check_signature(name, signature)
    metadata = write_request.metadata(request.headers.get("Content-Type"), signature)
    await write_request.send_continue(request)
    async with (
        writer.write_health.attempt() as progress,
        writer.volume.stage(name, dry_run=dry_run) as upload,
    ):
        await write_request.stream_body(request, upload, progress.progressed, writer.buffers)
        done = await writer.volume.put(
            name,
            upload,
            if_match=conditions.if_match,
            if_none_match=conditions.if_none_match,
            metadata=metadata,
            dry_run=dry_run,
        )
    in_time, headers = await _confirm(request, name, done, dry_run=dry_run)
    headers |= _request_id_header()
    if not in_time:
        return web.Response(status=202, headers=headers)
    return web.Response(status=201 if done.created else 204, headers=headers)


@_attempt
async def _delete_file(request: web.Request) -> web.Response:
    writer = request.app[WRITER]
    name = write_request.file_name(request)
    dry_run = write_request.dry_run(request)
    purge = write_request.flag(request, "purge")
    wanted = await write_request.if_match_only(request, writer.volume, name)
    async with writer.write_health.attempt():
        await writer.volume.delete(
            name, if_match=wanted, metadata=write_request.metadata(), dry_run=dry_run, purge=purge
        )
    in_time, headers = await _confirm(request, name, None, dry_run=dry_run)
    headers |= _request_id_header()
    return web.Response(status=204 if in_time else 202, headers=headers)


async def _get_versions(request: web.Request) -> web.Response:
    writer = request.app[WRITER]
    versions = await writer.volume.versions(request.query.get("name", writer.primary))
    return representation.json_answer([history.version_entry(one) for one in versions])


@_attempt
async def _post_rollback(request: web.Request) -> web.Response:
    writer = request.app[WRITER]
    dry_run = write_request.dry_run(request)
    to, name = await write_request.rollback_body(request)
    name = writer.primary if name is None else models.check_name(name)
    wanted = await write_request.if_match_only(request, writer.volume, name)
    async with writer.write_health.attempt():
        done = await writer.volume.rollback(
            to, name=name, if_match=wanted, metadata=write_request.metadata(), dry_run=dry_run
        )
    in_time, headers = await _confirm(request, name, done, dry_run=dry_run)
    headers |= _request_id_header()
    state = {
        "name": name,
        "etag": done.etag,
        "changed": done.changed,
        "size": done.size,
        "modified": representation.rfc3339(done.modified),
    }
    return representation.json_answer(state, status=200 if in_time else 202, headers=headers)


# Responses


async def _confirm(
    request: web.Request, name: str | None, done: Publication | None, *, dry_run: bool
) -> tuple[bool, dict[str, str]]:
    """Wait for the reader if requested; return whether it has the content, and the headers of the response.

    With `Prefer: wait=SECONDS` the reader is asked for the content; `done` None: whether the content is gone there.
    """
    writer = request.app[WRITER]
    etag = None if done is None else done.etag
    headers = ({} if etag is None else {"ETag": etag}) | _dry_run_headers(dry_run=dry_run)
    seconds = representation.prefer_wait(request)
    if seconds is None or writer.confirm is None or dry_run:
        return True, headers
    asked = None if name == writer.primary else name
    took = await writer.confirm.wait(request, etag, name=asked, seconds=seconds)
    headers |= representation.preference_applied(seconds)
    if took is not None:
        headers["Server-Timing"] = f"confirm;dur={took * 1000:.1f}"
    return took is not None, headers


def _request_id_header() -> dict[str, str]:
    """Return the header with the request ID: a client that sent none learns it."""
    request = request_context.CURRENT.get()
    return {} if request is None else {files.REQUEST_ID_HEADER: request.request_id}


def _dry_run_headers(*, dry_run: bool) -> dict[str, str]:
    return {"Cache-Control": "no-store"} | ({DRY_RUN: "1"} if dry_run else {})


def _too_large(writer: Writer, name: str, *, dry_run: bool) -> problems.Problem:
    where = os.path.join(writer.volume.path, name)
    error = too_large(where, writer.max_size)
    outcomes.count_failure(error, where, dry_run=dry_run)
    problem = problems.from_error(error)
    problem.counted = True
    problem.force_close()
    return problem


def _split_path(path: str) -> tuple[str, str | None]:
    """Return the directory, and the file name if `path` is a file."""
    whole = os.path.abspath(path)
    if path.endswith("/") or os.path.isdir(whole):
        return whole, None
    directory, name = os.path.split(whole)
    try:
        return directory, models.check_name(name)
    except _errors.NameRefused as error:
        raise _errors.ConfigError(str(error)) from error
