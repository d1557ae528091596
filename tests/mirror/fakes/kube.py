"""A Kubernetes API for ConfigMaps and Secrets: list and watch as a server 1.36.2 answers them.

What it answers was taken from a real server: a watch from a version that is too old is 200 with an ERROR of code 410,
one from a version that does not exist yet is silent; a label taken away is DELETED; pages of a list have one version.
One without a version begins with all objects as ADDED
(https://kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-watch).
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

KINDS = {"configmaps": "ConfigMap", "secrets": "Secret"}
Selects = Callable[[dict[str, Any]], bool]


class KubeApi:
    """Objects with versions, and the events since `oldest`."""

    def __init__(self) -> None:
        self.version = 100
        self.oldest = 0
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.events: list[tuple[int, str, str, dict[str, Any], dict[str, Any] | None]] = []
        self.requests: list[str] = []
        self.token: str | None = None
        self.namespaces: set[str] | None = None
        """Where the account may read; None is everywhere."""
        self.is_silent = False
        """Whether watches stay open without a word."""
        self.deaf_to: set[str] = set()
        """Names of objects whose events are lost."""
        self._changed = asyncio.Event()
        self._watches: set[web.StreamResponse] = set()
        app = web.Application()
        app.add_routes(
            [
                web.get("/api", self._versions),
                web.get("/apis", self._groups),
                web.get("/api/v1", self._resources),
                web.get("/api/v1/{kind}", self._get),
                web.get("/api/v1/namespaces/{namespace}/{kind}", self._get),
            ]
        )
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("/")).rstrip("/")

    def put(self, kind: str, name: str, data: dict[str, str | bytes], *, namespace: str = "shop",
            labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None,
            created: str = "2026-01-01T00:00:00Z") -> None:  # fmt: skip
        """Create or replace an object."""
        self.version += 1
        key = (namespace, kind, name)
        before = self.objects.get(key)
        meta = {
            "name": name,
            "namespace": namespace,
            "uid": before["metadata"]["uid"] if before else f"uid-{self.version}",
            "resourceVersion": str(self.version),
            "creationTimestamp": created,
            "labels": labels or {},
            "annotations": annotations or {},
        }
        made: dict[str, Any] = {"kind": KINDS[kind], "apiVersion": "v1", "metadata": meta}
        if kind == "secrets":
            made["data"] = {k: _base64(v) for k, v in data.items()}
        else:
            made["data"] = {k: v for k, v in data.items() if isinstance(v, str)}
            made["binaryData"] = {k: _base64(v) for k, v in data.items() if isinstance(v, bytes)}
        self.objects[key] = made
        self._tell("MODIFIED" if before else "ADDED", kind, made, before)

    def delete(self, kind: str, name: str, *, namespace: str = "shop") -> None:
        """Delete an object."""
        self.version += 1
        before = self.objects.pop((namespace, kind, name))
        meta = {**before["metadata"], "resourceVersion": str(self.version)}
        self._tell("DELETED", kind, {**before, "metadata": meta}, before)

    def forget_history(self) -> None:
        """Compact: watches from before now have expired."""
        self.oldest = self.version
        self.events.clear()

    def bookmark(self) -> None:
        """Send a bookmark to each watch."""
        self.events.append((self.version, "BOOKMARK", "", {}, None))
        self._wake()

    def drop_watches(self) -> None:
        """Cut all connections."""
        for one in list(self._watches):
            if one._req is not None and one._req.transport is not None:
                one._req.transport.abort()

    def _tell(
        self, event: str, kind: str, made: dict[str, Any], before: dict[str, Any] | None
    ) -> None:
        if made["metadata"]["name"] not in self.deaf_to:
            self.events.append((self.version, event, kind, made, before))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        if (
            self.token is not None
            and request.headers.get("Authorization") != f"Bearer {self.token}"
        ):
            return _status(401, "Unauthorized")
        kind, namespace = request.match_info["kind"], request.match_info.get("namespace")
        if self.namespaces is not None and namespace not in self.namespaces:
            scope = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
            user = "system:serviceaccount:shop:mirror"
            message = f'{kind} is forbidden: User "{user}" cannot list resource "{kind}" in API group "" {scope}'
            return _status(403, message, "Forbidden")
        selects = _selector(request)

        def fits(item: dict[str, Any]) -> bool:
            return namespace in (None, item["metadata"]["namespace"]) and selects(item)

        # As strconv.ParseBool: clients write 1, true and True.
        if request.query.get("watch", "").lower() in ("1", "t", "true"):
            return await self._watch(request, kind, fits)
        return self._list(request, kind, fits)

    def _list(self, request: web.Request, kind: str, fits: Selects) -> web.Response:
        found = self._selected(kind, fits)
        version, begin = self.version, 0
        if token := request.query.get("continue"):
            version, begin = json.loads(base64.urlsafe_b64decode(token))
            if version < self.oldest:
                return _status(410, "The provided continue parameter is too old", "Expired")
        limit = int(request.query.get("limit", 0)) or len(found)
        meta: dict[str, Any] = {"resourceVersion": str(version)}
        if begin + limit < len(found):
            rest = json.dumps([version, begin + limit]).encode()
            meta["continue"] = base64.urlsafe_b64encode(rest).decode()
        items = found[begin : begin + limit]
        if "PartialObjectMetadataList" in request.headers.get("Accept", ""):
            items = [{"metadata": one["metadata"]} for one in items]
        return web.json_response(
            {"kind": f"{KINDS[kind]}List", "apiVersion": "v1", "metadata": meta, "items": items}
        )

    def _selected(self, kind: str, fits: Selects) -> list[dict[str, Any]]:
        ordered = sorted(self.objects.items())
        return [one for (_, own, _), one in ordered if own == kind and fits(one)]

    async def _watch(self, request: web.Request, kind: str, fits: Selects) -> web.StreamResponse:
        given = request.query.get("resourceVersion")
        since = self.version if given is None else int(given)
        present = [] if given is not None else self._selected(kind, fits)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self._watches.add(response)
        try:
            if since < self.oldest:
                message = f"too old resource version: {since} ({self.oldest})"
                error = {"kind": "Status", "code": 410, "reason": "Expired", "message": message}
                await _send(response, "ERROR", error)
                return response
            for one in present:
                await _send(response, "ADDED", one)
            position = 0 if since <= self.version else len(self.events)
            while True:
                changed = self._changed
                if self.is_silent or since > self.version:
                    position = len(self.events)
                while position < len(self.events):
                    version, event, own, made, before = self.events[position]
                    position += 1
                    if event == "BOOKMARK":
                        meta = {"resourceVersion": str(version), "creationTimestamp": None}
                        await _send(
                            response,
                            event,
                            {"kind": KINDS[kind], "apiVersion": "v1", "metadata": meta},
                        )
                    elif version > since and own == kind:
                        told = _event_for(event, made, before, fits)
                        if told is not None:
                            await _send(response, told, made)
                await changed.wait()
        finally:
            self._watches.discard(response)

    async def _versions(self, request: web.Request) -> web.Response:
        return web.json_response({"kind": "APIVersions", "versions": ["v1"]})

    async def _groups(self, request: web.Request) -> web.Response:
        return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})

    async def _resources(self, request: web.Request) -> web.Response:
        verbs = ["get", "list", "watch"]
        found = [
            {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": verbs}
            for name, kind in KINDS.items()
        ]
        made = {"kind": "APIResourceList", "groupVersion": "v1", "resources": found}
        return web.json_response(made)


def _event_for(
    event: str, made: dict[str, Any], before: dict[str, Any] | None, fits: Selects
) -> str | None:
    """Return what a watch with a selector is told: an object that no longer fits was deleted."""
    was, now = before is not None and fits(before), fits(made)
    if event == "DELETED":
        return event if was else None
    if now:
        return "MODIFIED" if was else "ADDED"
    return "DELETED" if was else None


def _selector(request: web.Request) -> Selects:
    wanted = [
        one.partition("=") for one in request.query.get("labelSelector", "").split(",") if one
    ]
    field = request.query.get("fieldSelector", "").removeprefix("metadata.name=")

    def fits(item: dict[str, Any]) -> bool:
        labels = item["metadata"]["labels"]
        named = not field or item["metadata"]["name"] == field
        return named and all(
            labels.get(key) == value if equals else key in labels for key, equals, value in wanted
        )

    return fits


async def _send(response: web.StreamResponse, kind: str, item: dict[str, Any]) -> None:
    await response.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")


def _status(code: int, message: str, reason: str = "") -> web.Response:
    made = {
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "message": message,
        "reason": reason,
    }
    return web.json_response(made, status=code)


def _base64(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()
