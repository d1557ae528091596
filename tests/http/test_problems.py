"""Problems: one form, one table, and every error of ours has its row."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator

import orjson
import pytest
from aiohttp import web

from sidecar import _errors
from sidecar.http import problems
from support.httpkit import MakeClient, problem


def every_error(base: type[_errors.SidecarError] = _errors.SidecarError) -> Iterator[type]:
    yield base
    for one in base.__subclasses__():
        yield from every_error(one)


@pytest.mark.parametrize("kind", problems.PROBLEM_TYPES)
def test_every_kind_makes_a_problem_of_rfc_9457(kind: str) -> None:
    """Type, title, status and detail; the media type; the status of the table."""
    made = problems.Problem(kind, "what was attempted", members={"more": 1})
    assert isinstance(made.body, bytes)
    body = orjson.loads(made.body)
    assert made.content_type == "application/problem+json"
    assert body == {
        "type": f"/problems/{kind}",
        "title": problems.PROBLEM_TYPES[kind].title,
        "status": made.status,
        "detail": "what was attempted",
        "more": 1,
    }
    assert made.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (_errors.VolumeFull(28, "m"), 507),
        (_errors.VolumeUnavailable(30, "m"), 503),
        (_errors.ContentRefused("m", ["a", "b"]), 422),
        (_errors.ContentTooLarge("m"), 413),
        (_errors.VersionConflict("m", '"1"'), 412),
        (_errors.NameRefused("m"), 400),
        (_errors.NameTaken("m"), 409),
        (_errors.FileMissing("m"), 404),
        (_errors.PublishError("m"), 500),
        (_errors.PublishUncertain("m", "0123"), 500),
        (_errors.NothingPublished(2, "m"), 503),
        (_errors.ContentAltered(5, "m"), 503),
        (_errors.ReadError(13, "m"), 404),
        (_errors.UnknownVersion("m"), 404),
        (_errors.ConfigError("m"), 500),
        (_errors.SidecarError("m"), 500),
    ],
)
def test_every_error_of_ours_has_its_status(error: _errors.SidecarError, status: int) -> None:
    """The whole tree, and the message as it is, without the number of the errno."""
    made = problems.from_error(error)
    assert (made.status, made.detail) == (status, "m")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_volume_that_fails_is_not_taken_for_a_file_that_is_not_there(number: int) -> None:
    """404 is for what lies there; all else is the volume's or the process's fault, and worth another try."""
    made = problems.from_error(_errors.ReadError(number, "cannot read /shared/a: …"))
    assert (made.status, made.kind, made.headers["Retry-After"]) == (503, "unreadable", "1")


def test_no_error_of_ours_is_forgotten() -> None:
    """A new branch of the tree needs a row above."""
    tested = {
        name
        for mark in test_every_error_of_ours_has_its_status.pytestmark  # type: ignore[attr-defined]
        for error, _ in mark.args[1]
        for name in [type(error)]
    }
    # Errors of log collection never meet HTTP, and are known here only if their module was imported.
    ours = {error for error in every_error() if error.__module__ == "sidecar._errors"}
    assert tested == ours


def test_a_deletion_that_is_not_durable_names_no_version() -> None:
    """There is no content whose entity tag could be said."""
    found = problems.from_error(_errors.PublishUncertain("deleted, but perhaps not durably", ""))
    assert "ETag" not in found.headers
    assert isinstance(found.body, bytes)
    assert b"etag" not in found.body


@pytest.fixture
def failing() -> web.Application:
    """An application whose handler raises what the query names."""

    async def fail(request: web.Request) -> web.Response:
        raise {
            "unknown": RuntimeError("the inside"),
            "http": web.HTTPConflict(text="somebody else"),
            "redirect": web.HTTPFound("/elsewhere"),
            "ours": _errors.ReadError(40, "cannot read /shared/a: it leaves the volume"),
        }[request.query["what"]]

    app = web.Application(middlewares=[problems.middleware])
    app.add_routes([web.get("/", fail)])
    return app


async def test_an_unexpected_error_shows_a_number_and_nothing_else(
    client: MakeClient, failing: web.Application, caplog: pytest.LogCaptureFixture
) -> None:
    """The same number is in the log, with the traceback."""
    answer = await (await client(failing)).get("/?what=unknown")
    found = await problem(answer, 500, "internal-error")
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", found["instance"])
    assert "inside" not in await answer.text()
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert found["instance"] in record.getMessage()
    assert "the inside" in caplog.text


async def test_errors_of_aiohttp_become_problems(
    client: MakeClient, failing: web.Application
) -> None:
    """Those in the table get its type, others `about:blank` (RFC 9457 section 4.2.1)."""
    one = await client(failing)
    await problem(await one.get("/nothing"), 404, "not-found")
    await problem(await one.put("/"), 405, "method-not-allowed")
    answer = await one.get("/?what=http")
    body = await answer.json(content_type="application/problem+json")
    assert (answer.status, body["type"], body["detail"]) == (409, "about:blank", "somebody else")


async def test_what_is_no_error_stays_as_it_is(
    client: MakeClient, failing: web.Application
) -> None:
    """A redirect is an exception in aiohttp, and no problem."""
    answer = await (await client(failing)).get("/?what=redirect", allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (302, "/elsewhere")


async def test_our_errors_need_no_handler_of_their_own(
    client: MakeClient, failing: web.Application
) -> None:
    """Raised anywhere beneath, they are answered as the table says."""
    answer = await (await client(failing)).get("/?what=ours")
    found = await problem(answer, 404, "unfit-to-read")
    assert found["detail"] == "cannot read /shared/a: it leaves the volume"
