"""Repositories as people have them, and git's own HTTP backend and an SSH server in front of them."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer

BACKEND = Path("/usr/lib/git-core/git-http-backend")
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.com",
}


class Project:
    """A repository with a working tree, as people have one, and what a server shows of it."""

    def __init__(self, directory: Path) -> None:
        self.tree = directory
        directory.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        for setting in ("allowAnySHA1InWant", "allowFilter"):
            self.git("config", f"uploadpack.{setting}", "true")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.tree, env=ENVIRONMENT, capture_output=True, text=True, check=True
        )  # fmt: skip
        return done.stdout.strip()

    def commit(self, **files: str | None) -> str:
        """Commit these files (None removes one; __ in a name is a /), and return the commit."""
        for key, content in files.items():
            path = self.tree / key.replace("__", "/")
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=change")
        return self.git("rev-parse", "HEAD")

    def add_module(self, path: str, url: str, commit: str) -> None:
        """Add a submodule, to be committed with the next files."""
        with (self.tree / ".gitmodules").open("a") as file:
            file.write(f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n')
        self.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
        (self.tree / path).mkdir(parents=True)


class Backend:
    """git-http-backend behind aiohttp, as its manual describes for any CGI server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.user, self.password = "git", ""
        self.logins: set[str | None] = set()
        """The headers with credentials that came."""
        self.moved: dict[str, str] = {}
        self.cookies: set[str] = set()
        self.knows_version_2 = True
        self.requests: list[str] = []
        self.connections: set[object] = set()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self.server = TestServer(app)

    def url(self, name: str) -> str:
        return f"git+{self.server.make_url(f'/{name}/.git')}"

    def basic(self) -> str:
        """Return the header that it wants."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}"

    async def _serve(self, request: web.Request) -> web.Response:
        self.requests.append(f"{request.method} {request.path.rpartition('/')[2]}")
        self.connections.add(request.protocol)
        given = request.headers.get("Authorization")
        self.logins.add(given)
        self.cookies.add(request.headers.get("Cookie", ""))
        for old, new in self.moved.items():
            if request.path.startswith(old):
                return web.Response(status=301, headers={"Location": str(request.rel_url).replace(old, new)})  # fmt: skip
        if self.password and given != self.basic():
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        protocol = request.headers.get("Git-Protocol", "") if self.knows_version_2 else ""
        body = await request.content.read() if request.can_read_body else b""
        environment = {
            **ENVIRONMENT, "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": request.path, "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method, "GIT_PROTOCOL": protocol,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        }  # fmt: skip
        # In a thread, which ends with the process: a request that is cut off leaves none behind.
        done = await asyncio.to_thread(
            subprocess.run, [BACKEND], input=body, env=environment, capture_output=True, check=False
        )
        output = done.stdout
        head, _, content = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200").split()[0])
        return web.Response(status=status, headers=headers, body=content)
