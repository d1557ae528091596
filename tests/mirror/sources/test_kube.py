"""ConfigMaps and Secrets: what readers see while objects change, watches die, and history is lost."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.conftest import StartMirror
from mirror.fakes.kube import KubeApi
from pod import tools
from sidecar import _errors
from sidecar.mirror.sources import factory, kube
from sidecar.mirror.sources.kube import KubeSource
from sidecar.process import metrics
from sidecar.volume.volume import Volume
from support import Eventually, httpkit


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    made = KubeApi()
    await made.server.start_server()
    yield made
    made.drop_watches()
    await made.server.close()


def source(api: KubeApi, url: str = "kube://shop/configmaps", **options: Any) -> KubeSource:
    return KubeSource(url, server=api.url, **options)


def rescues() -> float:
    return float(metrics.MIRROR_RESCUES_TOTAL._value.get())


async def files(volume: Volume) -> dict[str, bytes]:
    return dict(await volume.snapshot())


async def test_keys_of_objects_become_files(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Of ConfigMaps as text and binary data, of Secrets decoded; selected by label, in the namespaces that are named."""
    label = {"dashboard": "1"}
    api.put("configmaps", "one", {"a": "ä", "b.bin": b"\0\xff"}, labels=label)
    api.put("secrets", "two", {"key": "secret"}, namespace="other", labels=label)
    api.put("configmaps", "unlabelled", {"x": "x"})
    api.put("configmaps", "elsewhere", {"y": "y"}, namespace="third", labels=label)
    url = "kube://shop,other/configmaps+secrets?labelSelector=dashboard"
    running = start_mirror(source(api, url))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "ä".encode(), "b.bin": b"\0\xff", "key": b"secret"}


async def test_events_are_published(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Created, changed, deleted; a label that is taken away is a deletion."""
    api.put("configmaps", "one", {"a": "1", "b": "1"}, labels={"app": "x"})
    running = start_mirror(source(api, "kube://shop/configmaps?labelSelector=app%3Dx"))
    await eventually(lambda: running.is_complete)
    api.put("configmaps", "two", {"c": "1", "d": "1"}, labels={"app": "x"})
    await eventually((Path(volume.path) / "c").exists)
    api.put("configmaps", "one", {"a": "2", "b": "1"}, labels={"app": "x"})
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")
    api.put("configmaps", "two", {"c": "1", "d": "1"})
    await eventually(lambda: not (Path(volume.path) / "c").exists())
    assert await files(volume) == {"a": b"2", "b": b"1"}
    lists = [one for one in api.requests if "watch" not in one]
    assert len(lists) == 1, "events are told; nothing is listed again"


async def test_keys_of_one_object_are_never_seen_apart(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """k8s-sidecar showed two keys of one ConfigMap mixed 156 to 4,287 times in a run."""
    api.put("configmaps", "one", {"x": "0", "y": "0"})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    seen: set[tuple[str, str]] = set()

    async def read() -> None:
        async for snapshot in volume.watch():
            seen.add((snapshot.text("x"), snapshot.text("y")))

    reading = asyncio.create_task(read())
    for number in range(1, 31):
        api.put("configmaps", "one", {"x": str(number), "y": str(number)})
        await asyncio.sleep(0)
    await eventually(lambda: ("30", "30") in seen)
    reading.cancel()
    assert all(x == y for x, y in seen)


async def test_a_deletion_while_the_connection_was_cut_is_noticed(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """The watch goes on from the last version."""
    api.put("configmaps", "one", {"a": "1"})
    api.put("configmaps", "two", {"b": "1"})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    await eventually(lambda: any("watch" in one for one in api.requests))
    api.drop_watches()
    api.delete("configmaps", "two")
    await eventually(lambda: not (Path(volume.path) / "b").exists())
    assert await files(volume) == {"a": b"1"}


async def test_a_deletion_that_history_does_not_tell_is_noticed(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """410 inside of a watch: list again, and compare (k8s-sidecar keeps the file for ever)."""
    api.put("configmaps", "one", {"a": "1"})
    api.put("configmaps", "two", {"b": "1"})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    await eventually(lambda: any("watch" in one for one in api.requests))
    api.deaf_to.add("two")
    api.delete("configmaps", "two")
    api.put("configmaps", "one", {"a": "1"})
    api.version += 1
    api.forget_history()
    api.drop_watches()
    await eventually(lambda: not (Path(volume.path) / "b").exists())
    assert await files(volume) == {"a": b"1"}


async def test_a_change_that_the_watch_has_missed_is_found_by_comparing(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """By names and versions alone; and it is counted as a rescue."""
    api.put("configmaps", "one", {"a": "1"})
    api.put("configmaps", "two", {"b": "1"})
    running = start_mirror(source(api, recheck=0.05))
    await eventually(lambda: running.is_complete)
    before = rescues()
    api.deaf_to.add("two")
    api.put("configmaps", "two", {"b": "2"})
    await eventually(lambda: (Path(volume.path) / "b").read_bytes() == b"2")
    await eventually(lambda: rescues() == before + 1)


async def test_comparisons_go_on_over_watches_and_become_rarer_with_their_size(
    api: KubeApi, start_mirror: StartMirror, eventually: Eventually
) -> None:
    """A watch ends before the next one is due; and many objects must not cost the server more than 5 bytes a second."""
    for number in range(200):
        api.put("configmaps", f"dashboard-{number}", {f"dashboard-{number}": "1"})
    followed = source(api)
    running = start_mirror(followed)
    await eventually(lambda: running.is_complete)
    (resource,) = followed._resources
    due = resource.recheck_at
    assert due - asyncio.get_running_loop().time() < kube._RECHECK_SECONDS * 1.5
    api.drop_watches()
    await eventually(lambda: sum("watch" in one for one in api.requests) == 2)
    assert resource.recheck_at == due
    async with followed._client.session():
        await followed._compare(resource)
    pause = resource.recheck_at - asyncio.get_running_loop().time()
    assert resource.compared_bytes > 200 * 100
    assert pause > resource.compared_bytes / 5 / 2 - 1 > kube._RECHECK_SECONDS


async def test_a_silent_watch_is_listed_anew(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A server that hangs, or a watch from a version that does not exist: no bookmark is a sign of death."""
    monkeypatch.setattr(kube, "_SILENCE_SECONDS", 0.05)
    api.put("configmaps", "one", {"a": "1"})
    api.is_silent = True
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    api.put("configmaps", "one", {"a": "2"})
    await eventually(lambda: (Path(volume.path) / "a").read_bytes() == b"2")


async def test_a_server_that_went_back_is_held(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A restored etcd: versions are smaller than before."""
    monkeypatch.setattr(kube, "_SILENCE_SECONDS", 0.05)
    api.put("configmaps", "one", {"a": "new"})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    api.version = 10
    api.put("configmaps", "one", {"a": "old"})
    await eventually(lambda: "--allow-rewind" in (running.problem or ""))
    assert await files(volume) == {"a": b"new"}


async def test_bookmarks_are_signs_of_life(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """And the watch goes on from the newest after a cut: no old event comes twice."""
    api.put("configmaps", "one", {"a": "1"})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    await eventually(lambda: any("watch" in one for one in api.requests))
    api.put("configmaps", "other", {"x": "1"}, namespace="other")
    contact = running.followed[0].contact
    api.bookmark()
    await eventually(lambda: running.followed[0].contact > contact)
    api.drop_watches()
    await eventually(lambda: f"resourceVersion={api.version}" in api.requests[-1])


async def test_many_objects_come_in_pages(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(kube, "_PAGE_OBJECTS", 2)
    for number in range(5):
        api.put("configmaps", f"c{number}", {f"f{number}": "1"})
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    assert sorted(await files(volume)) == ["f0", "f1", "f2", "f3", "f4"]


async def test_pages_are_bounded_together(
    api: KubeApi, start_mirror: StartMirror, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Each is small, and there is always one more."""
    monkeypatch.setattr(kube, "_PAGE_OBJECTS", 1)
    for number in range(5):
        api.put("configmaps", f"c{number}", {f"f{number}": "x" * 600})
    running = start_mirror(source(api, max_bytes=2000))
    await eventually(lambda: "answers are larger than 2000 bytes" in (running.problem or ""))


@pytest.mark.parametrize(
    ("annotation", "folder", "name"),
    [
        ("sub/dir", None, "sub/dir/a"),
        ("./sub//dir/", None, "sub/dir/a"),
        ("/tmp/dashboards/sub", "/tmp/dashboards", "sub/a"),
        ("/tmp/dashboards", "/tmp/dashboards/", "a"),
        ("/tmp/dashboards-other", "/tmp/dashboards", None),
        ("sub/../../up", None, None),
        ("/etc", "/tmp/dashboards", None),
        ("../up", None, None),
    ],
)
async def test_a_folder_annotation_stays_on_the_volume(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually,
    annotation: str, folder: str | None, name: str | None,
) -> None:  # fmt: skip
    """In k8s-sidecar `/abs/path` and `../up` write outside of the folder."""
    api.put(
        "configmaps", "one", {"a": "1"}, annotations={"k8s-sidecar-target-directory": annotation}
    )
    api.put("configmaps", "two", {"b": "1"})
    chosen = "k8s-sidecar-target-directory"
    running = start_mirror(source(api, folder_annotation=chosen, folder=folder))
    await eventually(lambda: running.is_complete)
    assert sorted(await files(volume)) == sorted(filter(None, ["b", name]))
    assert list(running.refused) == ([] if name else ["shop/configmaps/one"])


async def test_unique_names_are_those_of_the_peer(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Dashboards of a Grafana that was set up for k8s-sidecar keep their names."""
    api.put("configmaps", "one", {"a.json": "{}"})
    running = start_mirror(source(api, unique_names=True))
    await eventually(lambda: running.is_complete)
    assert list(await files(volume)) == ["namespace_shop.configmap_one.a.json"]


async def test_a_token_is_read_for_each_request(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually, tmp_path: Path
) -> None:
    """A projected token lives an hour; a request with the old one is answered with 401."""
    token = tmp_path / "token"
    token.write_text("old")
    api.token = "new"
    api.put("configmaps", "one", {"a": "1"})
    running = start_mirror(source(api, token_file=str(token)))
    await eventually(lambda: running.problem is not None)
    assert "it answered 401: Unauthorized" in (running.problem or "")
    token.write_text("new")
    await eventually(lambda: running.is_complete)


async def test_one_object_is_watched_by_its_name(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """`get`, `list` and `watch` on one named object are all the rights it needs."""
    api.put("configmaps", "one", {"a": "1"})
    api.put("configmaps", "two", {"b": "1"})
    running = start_mirror(source(api, "kube://shop/configmaps/one"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": b"1"}
    assert all("fieldSelector=metadata.name%3Done" in one for one in api.requests)


async def test_several_objects_are_watched_by_their_names(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """RBAC can name them; k8s-sidecar does not watch named objects, it lists them every minute."""
    for name in ("one", "two", "three"):
        api.put("configmaps", name, {name: "1"})
    running = start_mirror(source(api, "kube://shop/configmaps/one,two"))
    await eventually(lambda: running.is_complete)
    assert sorted(await files(volume)) == ["one", "two"]
    api.put("configmaps", "two", {"two": "2"})
    await eventually(lambda: (Path(volume.path) / "two").read_bytes() == b"2")


async def test_a_right_that_is_missing_is_named_and_nothing_is_removed(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A role that was taken away is no empty state; and `*` does not become the namespaces that may be read."""
    api.put("configmaps", "one", {"a": "1"})
    running = start_mirror(source(api, "kube://*/configmaps"))
    await eventually(lambda: running.is_complete)
    await eventually(lambda: any("watch" in one for one in api.requests))
    api.namespaces = {"shop"}
    api.drop_watches()
    await eventually(lambda: "it answered 403" in (running.problem or ""))
    assert 'cannot list resource "configmaps" in API group "" at the cluster scope' in (running.problem or "")  # fmt: skip
    assert await files(volume) == {"a": b"1"}


async def test_the_fake_is_understood_by_kubectl(api: KubeApi) -> None:
    """A client that is not ours reads the same objects from it, by list and by watch."""
    api.put("configmaps", "one", {"a": "1"}, labels={"app": "x"})
    api.put("configmaps", "two", {"b": "1"})
    kubectl = await asyncio.to_thread(tools.kubectl)
    arguments = ("--server", api.url, "--namespace", "shop", "get", "configmaps")
    process = await asyncio.create_subprocess_exec(
        kubectl, *arguments, "-o", "json", "-l", "app=x", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    (found,) = json.loads(out)["items"]
    assert (found["metadata"]["name"], found["data"]) == ("one", {"a": "1"})
    watching = await asyncio.create_subprocess_exec(
        kubectl, *arguments, "-o", "name", "--watch-only", stdout=asyncio.subprocess.PIPE
    )
    assert watching.stdout is not None
    while not any("watch" in one for one in api.requests):
        await asyncio.sleep(0.01)
    api.put("configmaps", "three", {"c": "1"})
    assert await watching.stdout.readline() == b"configmap/three\n"
    watching.kill()
    await watching.wait()


async def test_the_fake_is_understood_by_another_client_without_a_version(api: KubeApi) -> None:
    """A watch that names none begins with all objects, and goes on with what happens then."""
    api.put("configmaps", "one", {"a": "1"})
    url = f"{api.url}/api/v1/namespaces/shop/configmaps?watch=true"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        first = json.loads(await answer.content.readline())
        api.put("configmaps", "one", {"a": "2"})
        second = json.loads(await answer.content.readline())
    told = [(one["type"], one["object"]["data"]) for one in (first, second)]
    assert told == [("ADDED", {"a": "1"}), ("MODIFIED", {"a": "2"})]


async def test_readers_never_see_an_empty_or_half_file_or_two_versions(
    api: KubeApi, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """A plain program that opens the files; k8s-sidecar showed empty ones in 13 to 22 % of reads of a ConfigMap of 900 kB."""
    size = 450_000
    api.put("configmaps", "one", dict.fromkeys("xy", "0" * size))
    running = start_mirror(source(api))
    await eventually(lambda: running.is_complete)
    seen: Counter[str] = Counter()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            directory = os.open(f"{volume.path}/..data", os.O_DIRECTORY)
            texts = []
            for name in "xy":
                with open(os.open(name, os.O_RDONLY, dir_fd=directory)) as file:
                    texts.append(file.read())
            os.close(directory)
            if texts[0] != texts[1]:
                seen["mixed"] += 1
            for text in texts:
                seen["empty" if not text else "half" if text != text[0] * size else text[0]] += 1

    reading = asyncio.create_task(asyncio.to_thread(read))
    for number in range(1, 10):
        api.put("configmaps", "one", dict.fromkeys("xy", str(number) * size))
        await eventually(lambda wanted=str(number): seen[wanted] > 0)
    is_over.set()
    await reading
    assert seen.keys() <= set("0123456789"), seen


@pytest.mark.parametrize("named", [True, False])
def test_certificates_of_older_clusters_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    """Python 3.13 asks for extensions that they lack (DISABLE_X509_STRICT_VERIFICATION of k8s-sidecar); of other servers it still does."""
    made = ssl.create_default_context

    def strict(*arguments: Any, **options: Any) -> ssl.SSLContext:
        context = made(*arguments, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    authority, _ = httpkit.certificate(tmp_path, "ca")
    followed = KubeSource(
        "kube://shop/configmaps",
        server="https://10.0.0.1",
        ca_file=str(authority) if named else None,
    )
    context = followed._client._tls.context()
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert bool(context.verify_flags & ssl.VERIFY_X509_STRICT) is not named


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kube:///configmaps", "names no namespace"),
        ("kube://shop/pods", "no kind 'pods'"),
        ("kube://shop/configmaps?label=x", "no 'label'"),
        ("kube://shop/configmaps/a,", "write the names of objects"),
        ("kube://shop/configmaps/a/b", "write the names of objects"),
        ("kube://shop/configmaps", "no Pod of Kubernetes"),
        ("kube://./configmaps", "namespace of this Pod"),
    ],
)
def test_a_wrong_address_is_refused(url: str, said: str) -> None:
    with pytest.raises(_errors.ConfigError, match=said):
        factory.make_source(url)
