"""What readers see of ConfigMaps that change: `sidecar mirror kube://…`, and k8s-sidecar beside it where it is given.

    python tests/peers/k8s_sidecar.py [--updates 60] [--peer DIRECTORY --peer-python PYTHON]

DIRECTORY is a checkout of https://github.com/kiwigrid/k8s-sidecar, PYTHON an interpreter with what it requires.
Both follow the API fake of the tests, and a process reads the files without a pause. A case is an event that the table names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

sys.path.insert(0, str(Path(__file__).parent.parent))
from mirror.fakes.kube import KubeApi

SIZE = 450_000
LABEL = {"grafana_dashboard": "1"}
FOLDER = "k8s-sidecar-target-directory"
SETTLE = 3.0
STAYS = 30.0
"""Seconds after which a file is taken to stay: a watch that was cut is opened anew after 5 s by k8s-sidecar."""

READER = """
import json, os, signal, sys
path, size, seen = sys.argv[1], int(sys.argv[2]), {}
def count(what): seen[what] = seen.get(what, 0) + 1
def end(*_): print(json.dumps(seen)); sys.exit()
signal.signal(signal.SIGTERM, end)
while True:
    directory, texts = path, []
    if os.path.exists(path + "/..data"):
        directory = os.path.realpath(path + "/..data")
    for name in ("x", "y"):
        try:
            with open(f"{directory}/{name}") as file: texts.append(file.read())
        except FileNotFoundError: count("missing")
    count("pairs")
    for text in texts:
        count("reads")
        if not text: count("empty")
        elif text != text[0] * size: count("half")
    if len(texts) == 2 and all(texts) and texts[0][0] != texts[1][0]: count("mixed")
"""
STARTED_PEER = """
import builtins, io, runpy, sys
real = builtins.open
def opened(file, *rest, **options):
    if file == "/var/run/secrets/kubernetes.io/serviceaccount/namespace": return io.StringIO("shop")
    return real(file, *rest, **options)
builtins.open = opened
sys.path.insert(0, sys.argv[1]); sys.argv = ["sidecar.py"]
runpy.run_path(sys.path[0] + "/sidecar.py", run_name="__main__")
"""

Command = Callable[[KubeApi, Path], tuple[list[str], dict[str, str]]]


def ours(api: KubeApi, path: Path) -> tuple[list[str], dict[str, str]]:
    source = f"kube://shop/configmaps?labelSelector=grafana_dashboard#server={api.url}&folder_annotation={FOLDER}&url_keys=127.0.0.1"
    command = [sys.executable, "-m", "sidecar.cli.main", "mirror", source]
    return [*command, "--path", f"{path}/", "--port", "0", "--host", "127.0.0.1"], {}


def peer(checkout: str, python: str) -> Command:
    def command(api: KubeApi, path: Path) -> tuple[list[str], dict[str, str]]:
        config = path.parent / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": api.url}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        made = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {"token": "t"}}]}  # fmt: skip
        config.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "c", **made}))  # fmt: skip
        variables = {"LABEL": "grafana_dashboard", "FOLDER": str(path), "NAMESPACE": "shop", "KUBECONFIG": str(config)}  # fmt: skip
        return [python, "-c", STARTED_PEER, f"{checkout}/src"], {**variables, "HEALTH_PORT": "0"}

    return command


async def until(condition: Callable[[], bool], limit: float) -> float | None:
    """Return the seconds until it is true, None if it is not within the limit."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > limit:
            return None
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


def resident(pid: int) -> float:
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS")]  # fmt: skip
    return int(line.split()[1]) / 1024


async def measure(command: Command, updates: int) -> dict[str, str]:
    """Return what was seen, by case."""
    api, site = KubeApi(), web.Application()
    away = False

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=503) if away else web.Response(text="good")

    site.add_routes([web.get("/page", answer)])
    pages = TestServer(site)
    await api.server.start_server()
    await pages.start_server()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "in", "files")
        path.mkdir(parents=True)
        api.put("configmaps", "small", {"small": "1"}, labels=LABEL)
        arguments, variables = command(api, path)
        with Path(directory, "log").open("w") as log:
            process = await asyncio.create_subprocess_exec(*arguments, env={**os.environ, **variables}, stdout=log, stderr=log)  # fmt: skip
        try:
            found = await until((path / "small").exists, 30)
            assert found is not None, Path(directory, "log").read_text()
            await asyncio.sleep(SETTLE)
            table = {"memory with one ConfigMap": f"{resident(process.pid):.0f} MiB"}
            table |= await read_while_it_changes(api, path, updates)

            api.put("configmaps", "page", {"page.url": str(pages.make_url("/page"))}, labels=LABEL)
            await until(lambda: (path / "page").exists() and (path / "page").read_text() == "good", 30)  # fmt: skip
            away = True
            api.put("configmaps", "page", {"page.url": str(pages.make_url("/page")), "more": "1"}, labels=LABEL)  # fmt: skip
            api.put("configmaps", "small", {"small": "2"}, labels=LABEL)
            delay = await until(lambda: (path / "small").read_text() == "2", 120)
            table["change of another while the server of a `.url` key is away"] = "never" if delay is None else f"{delay:.1f} s"  # fmt: skip
            await asyncio.sleep(SETTLE)
            table["file of that key then"] = repr((path / "page").read_text())
            away = False

            api.put("configmaps", "outside", {"outside": "1"}, labels=LABEL, annotations={FOLDER: "../up"})  # fmt: skip
            await asyncio.sleep(SETTLE)
            table["annotation `../up`"] = "written outside" if (path.parent / "up/outside").exists() else "refused"  # fmt: skip

            for name in ("first", "second"):
                api.put("configmaps", name, {"shared": name}, labels=LABEL)
            await until((path / "shared").exists, 30)
            await asyncio.sleep(SETTLE)
            api.delete("configmaps", "second")
            await asyncio.sleep(SETTLE)
            table["two with one key, one is deleted"] = "the other's is there" if (path / "shared").exists() else "gone"  # fmt: skip

            api.put("configmaps", "last", {"last": "1"}, labels=LABEL)
            await until((path / "last").exists, 30)
            api.deaf_to.add("last")
            api.delete("configmaps", "last")
            api.put("configmaps", "small", {"small": "3"}, labels=LABEL)
            api.forget_history()
            api.drop_watches()
            gone = await until(lambda: not (path / "last").exists(), STAYS)
            table["deleted while the API server was away"] = (
                f"stays (looked for {STAYS:.0f} s)" if gone is None else f"gone after {gone:.1f} s"
            )
            return table
        finally:
            process.kill()
            await process.wait()
            api.drop_watches()
            await api.server.close()
            await pages.close()


async def read_while_it_changes(api: KubeApi, path: Path, updates: int) -> dict[str, str]:
    """Change a ConfigMap of 900 kB, and have a process read its two files."""
    api.put("configmaps", "large", dict.fromkeys("xy", "0" * SIZE), labels=LABEL)
    assert await until((path / "y").exists, 30) is not None, (
        path.parent.parent / "log"
    ).read_text()[-2000:]
    await asyncio.sleep(SETTLE)
    reader = await asyncio.create_subprocess_exec(sys.executable, "-c", READER, path, str(SIZE), stdout=asyncio.subprocess.PIPE)  # fmt: skip
    for number in range(updates):
        api.put("configmaps", "large", dict.fromkeys("xy", str(number % 10) * SIZE), labels=LABEL)
        await asyncio.sleep(0.25)
    await asyncio.sleep(SETTLE)
    reader.terminate()
    out, _ = await reader.communicate()
    seen = json.loads(out)
    share = {what: f"{seen.get(what, 0):,} of {seen['reads']:,}" for what in ("empty", "half")}
    return {
        "empty files read": share["empty"],
        "half files read": share["half"],
        "two keys of different versions": f"{seen.get('mixed', 0):,} of {seen['pairs']:,}",
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--peer")
    parser.add_argument("--peer-python", default=sys.executable)
    options = parser.parse_args()
    tables = {"sidecar mirror": await measure(ours, options.updates)}
    if options.peer:
        tables["k8s-sidecar"] = await measure(
            peer(options.peer, options.peer_python), options.updates
        )
    print(f"| | {' | '.join(tables)} |\n|---|{'---|' * len(tables)}")
    for case in tables["sidecar mirror"]:
        print(f"| {case} | {' | '.join(table[case] for table in tables.values())} |")


if __name__ == "__main__":
    asyncio.run(main())
