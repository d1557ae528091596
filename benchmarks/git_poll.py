"""One question for the refs of a repository with 300 branches, by `sidecar mirror git+http` and by `git ls-remote`.

    python benchmarks/git_poll.py [--polls 300] [--json FILE]

Both ask `git http-backend` behind the same HTTP server, in a process of its own.
The CPU is that of whoever asks: of our process, and of git with all that it starts.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _options import arguments
from _rows import Row, report
from _servers import free_port, running

from sidecar.mirror.sources.git import GitSource

BRANCHES = 300
_ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
_BACKEND = """
import asyncio, os, subprocess, sys
from aiohttp import web
root, port = sys.argv[1], int(sys.argv[2])
async def serve(request):
    env = {"PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": root, "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": request.path,
           "QUERY_STRING": request.query_string, "REQUEST_METHOD": request.method,
           "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""), "CONTENT_TYPE": request.headers.get("Content-Type", ""),
           "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", "")}
    body = await request.content.read()
    done = await asyncio.to_thread(subprocess.run, ["git", "http-backend"], input=body, env=env, capture_output=True)
    head, _, content = done.stdout.partition(b"\\r\\n\\r\\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\\r\\n"))
    return web.Response(status=int(headers.pop("Status", "200").split()[0]), headers=headers, body=content)
app = web.Application()
app.router.add_get("/", lambda request: web.Response())
app.router.add_route("*", "/{path:.*}", serve)
web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)
"""


def make_repository(directory: Path) -> None:
    """Make a repository with one commit, and many names for it."""

    def git(*words: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", *words],
            cwd=directory, env=_ENVIRONMENT, input=stdin, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    git("init", "--quiet", "--bare", "--initial-branch=main")
    tree = git("mktree")
    commit = git("commit-tree", tree, "-m", "one")
    names = ["main", *(f"feature-{number}" for number in range(BRANCHES - 1))]
    git("update-ref", "--stdin", stdin="".join(f"create refs/heads/{one} {commit}\n" for one in names))  # fmt: skip


async def ours(url: str, polls: int) -> float:
    """Return the CPU milliseconds of a question; the first answers are not counted."""
    source, asked, begun = GitSource(f"git+{url}?ref=main", interval=0.001), 0, 0.0
    stream = source.follow(None)
    async for _ in stream:
        asked += 1
        if asked == 20:
            begun = time.process_time()
        if asked == 20 + polls:
            break
    spent = time.process_time() - begun
    await stream.aclose()  # type: ignore[attr-defined]
    return spent / polls * 1000


def theirs(url: str, polls: int) -> float:
    """Return the CPU milliseconds of `git ls-remote`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(polls):
        command = ["git", "ls-remote", url, "refs/heads/main"]
        subprocess.run(command, env=_ENVIRONMENT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / polls * 1000


def main() -> None:
    parser = arguments(__doc__, polls=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        repository, port = Path(root, "repository.git"), free_port()
        repository.mkdir()
        make_repository(repository)
        url = f"http://127.0.0.1:{port}/repository.git"
        with running([sys.executable, "-c", _BACKEND, root, str(port)], port):
            mine = asyncio.run(ours(url, options.polls))
            peer = theirs(url, max(options.polls // 6, 10))
    row = Row("a question for the refs of git: CPU", mine, "ms", peer=peer, peer_name="git ls-remote", goal_ratio=0.1)  # fmt: skip
    report([row], options.json)


if __name__ == "__main__":
    main()
