"""Conditions, ranges and preferences, row by row of the RFCs."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from sidecar.http.problems import Problem
from sidecar.http.semantics import representation
from sidecar.http.semantics.representation import EntityTags, Representation

TAG = '"0123"'
MODIFIED = 1_700_000_000.75
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"
BODY = b"0123456789"


def ask(method: str = "GET", body: bytes = BODY, **headers: Any) -> web.Response:
    """The answer to a request with these headers (`If_Match` for `If-Match`)."""
    request = make_mocked_request(
        method, "/", headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    return representation.build_response(
        request, Representation(body, TAG, MODIFIED, "text/plain", ranges=True, headers={"X": "y"})
    )


def test_a_header_in_several_lines_is_one_list() -> None:
    """Proxies split and join them (RFC 9110 section 5.3)."""
    headers = CIMultiDict([("If-None-Match", '"x"'), ("If-None-Match", TAG)])
    request = make_mocked_request("GET", "/", headers=headers)
    known = representation.if_none_match(request)
    assert known is not None
    assert known.match(TAG)


def status(**headers: Any) -> int:
    try:
        return ask(**headers).status
    except Problem as problem:
        return problem.status


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        # If-None-Match: weak comparison (RFC 9110 section 13.1.2)
        ({"If_None_Match": TAG}, 304),
        ({"If_None_Match": f"W/{TAG}"}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": f'"x", {TAG}'}, 304),
        ({"If_None_Match": f'"x" ,,\t{TAG},'}, 304),
        ({"If_None_Match": '"x"'}, 200),
        ({"If_None_Match": "0123"}, 200),
        ({"If_None_Match": ""}, 200),
        # If-Modified-Since counts only without it (13.1.3)
        ({"If_Modified_Since": DATE}, 304),
        ({"If_Modified_Since": EARLIER}, 200),
        ({"If_Modified_Since": "yesterday"}, 200),
        ({"If_None_Match": '"x"', "If_Modified_Since": DATE}, 200),
        ({"If_None_Match": "0123", "If_Modified_Since": DATE}, 200),
        # If-Match: strong comparison (13.1.1)
        ({"If_Match": TAG}, 200),
        ({"If_Match": "*"}, 200),
        ({"If_Match": f"W/{TAG}"}, 412),
        ({"If_Match": '"x", "y"'}, 412),
        ({"If_Match": "0123"}, 400),
        # If-Unmodified-Since counts only without it (13.1.4)
        ({"If_Unmodified_Since": DATE}, 200),
        ({"If_Unmodified_Since": EARLIER}, 412),
        ({"If_Unmodified_Since": EARLIER, "If_Match": TAG}, 200),
        # The order of evaluation (13.2.2)
        ({"If_Match": '"x"', "If_None_Match": TAG}, 412),
        ({"If_Match": TAG, "If_None_Match": TAG}, 304),
        ({"If_None_Match": TAG, "Range": "bytes=0-1"}, 304),
    ],
)
def test_conditions_are_evaluated_as_rfc_9110_says(headers: dict[str, str], expected: int) -> None:
    """Sections 13.1 and 13.2.2."""
    assert status(**headers) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", b"0"),
        ("bytes=2-4", b"234"),
        ("bytes=7-", b"789"),
        ("bytes=-3", b"789"),
        ("bytes=-99", BODY),
        ("bytes=5-99", b"56789"),
        ("Bytes = 5 - 6", b"56"),
    ],
)
def test_a_range_is_answered_with_that_part(asked: str, expected: bytes) -> None:
    """Section 14.1.2: first and last position, open end, suffix; what is too long is cut."""
    answer = ask(Range=asked)
    first = BODY.index(expected)
    assert (answer.status, answer.body) == (206, expected)
    assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/10"
    assert answer.headers["ETag"] == TAG


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-12", "bytes=-0", f"bytes={10**18}-"])
def test_a_range_outside_is_refused_with_the_size(asked: str) -> None:
    """Section 15.5.17."""
    with pytest.raises(Problem) as refused:
        ask(Range=asked)
    assert (refused.value.status, refused.value.headers["Content-Range"]) == (416, "bytes */10")


@pytest.mark.parametrize(
    "asked",
    ["bytes=0-1,3-4", "bytes=", "bytes=-", "bytes=4-2", "lines=0-1", "0-1", "bytes=a-b",
     f"bytes={'9' * 5000}-", "bytes=1-²"],
)  # fmt: skip
def test_a_range_that_is_none_or_many_is_ignored(asked: str) -> None:
    """Section 14.2: a server may ignore it; several ranges are work for nothing."""
    assert (status(Range=asked), ask(Range=asked).body) == (200, BODY)


def test_every_range_of_an_empty_body_is_outside() -> None:
    """Section 14.1.2: there is no first byte."""
    with pytest.raises(Problem):
        ask(body=b"", Range="bytes=0-")


@pytest.mark.parametrize(
    ("if_range", "expected"),
    [(TAG, 206), (f"W/{TAG}", 200), ('"x"', 200), (DATE, 206), (EARLIER, 200), ("*", 200)],
)
def test_a_range_holds_only_for_the_content_it_was_meant_for(if_range: str, expected: int) -> None:
    """Section 13.1.5: strong tag, or exactly the date."""
    assert status(Range="bytes=0-1", If_Range=if_range) == expected


def test_a_date_of_this_second_proves_nothing() -> None:
    """Section 8.8.2.2: within a second there may have been two contents of the same date."""
    request = make_mocked_request(
        "GET",
        "/",
        headers={"Range": "bytes=0-1", "If-Range": representation.http_date(time.time())},
    )
    fresh = Representation(BODY, TAG, time.time(), "text/plain", ranges=True)
    assert representation.build_response(request, fresh).status == 200


def test_a_head_has_the_headers_of_the_whole() -> None:
    """Section 14.2: Range is defined for GET only."""
    answer = ask("HEAD", Range="bytes=0-1")
    assert (answer.status, answer.content_length) == (200, 10)


def test_a_304_carries_what_a_cache_needs() -> None:
    """Section 15.4.5: the validators and Cache-Control, as the 200 would have had them."""
    names = ("ETag", "Last-Modified", "Cache-Control", "X")
    whole, known = ask(), ask(If_None_Match=TAG)
    assert [known.headers[name] for name in names] == [TAG, DATE, "no-cache", "y"]
    assert [whole.headers[name] for name in names] == [TAG, DATE, "no-cache", "y"]
    assert known.body is None


def test_a_date_is_never_in_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 8.8.2.1: a clock that was set back must not confuse caches."""
    monkeypatch.setattr(representation, "time", SimpleNamespace(time=lambda: 784111777.9))
    assert representation.http_date(784111777 + 3600) == "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [
        ("wait=5", 5.0),
        ("wait=0.25", 0.25),
        ("Wait = 5", 5.0),
        ('wait="5"', 5.0),
        ("respond-async, wait=5; x=1", 5.0),
        ("wait=5, wait=9", 5.0),
        ("wait=100000", representation.WAIT_LIMIT),
        ("wait=0", 0.0),
        ("wait", None),
        ("wait=", None),
        ("wait=-1", None),
        ("wait=1e9", None),
        ("wait=inf", None),
        ("wait=nan", None),
        ("wait=٣", None),
        ("await=5", None),
        ('note="later, wait=5"', None),
        ('note="later, wait=5", wait=9', 9.0),
        ('note="without an end, wait=5', None),
        ("", None),
    ],
)
def test_prefer_wait_is_read_as_rfc_7240_says(prefer: str, expected: float | None) -> None:
    """The first of a name counts, and what is not understood is as if it were not there."""
    request = make_mocked_request("GET", "/", headers={"Prefer": prefer})
    assert representation.prefer_wait(request) == expected


#: What a client can send is bytes; of characters Hypothesis would first make a table, for seconds.
PIECES = [b"wait", b"=", b"5", b'"', b",", b";", b" ", b"\t", b"W/", b"*", b"\\", "\u0663".encode()]


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=25))
def test_no_header_makes_the_parsers_fail(pieces: list[bytes]) -> None:
    """Whatever a client sends: an answer, or the one error that is documented."""
    sent = b"".join(pieces)
    text = sent.decode(
        "utf-8", "replace"
    )  # `make_mocked_request` takes no lone surrogates, as aiohttp makes them
    request = make_mocked_request("GET", "/", headers={"Prefer": text, "If-None-Match": text})
    representation.prefer_wait(request)
    representation.if_none_match(request)
    with contextlib.suppress(ValueError):
        EntityTags.parse(sent.decode("utf-8", "surrogateescape"))


@given(
    st.lists(st.binary().map(lambda raw: "".join(chr(0x23 + c % 0x5C) for c in raw)), min_size=1)
)
def test_tags_are_found_in_any_list_of_them(tags: list[str]) -> None:
    """Commas inside the quotes belong to the tag."""
    quoted = [f'"{tag}"' for tag in tags]
    parsed = EntityTags.parse(" , ".join(quoted))
    assert parsed.tags == tuple(quoted)
