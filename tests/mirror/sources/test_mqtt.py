"""Retained messages of a real broker: each change is told, and what one reading lacks is not gone."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from mirror.conftest import StartMirror
from sidecar import _errors
from sidecar.mirror.sources import factory, mqtt
from sidecar.mirror.sources.mqtt import MqttSource
from sidecar.process import metrics
from sidecar.volume.volume import Volume
from support import Eventually
from support.engines import Mosquitto


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.start()
    yield made
    made.kill()


def source(broker: Mosquitto, topic: str = "app/", **options: Any) -> MqttSource:
    return MqttSource(f"{broker.url}/{topic}", **{"settle": 0.05, **options})


async def publish(broker: Mosquitto, topics: dict[str, str], **options: Any) -> None:
    """Write retained messages as another client does, one after the other."""
    async with aiomqtt.Client("127.0.0.1", broker.port, **options) as client:
        for topic, payload in topics.items():
            await client.publish(topic, payload, qos=1, retain=True)


async def files(volume: Volume) -> dict[str, str]:
    return {name: data.decode() for name, data in (await volume.snapshot()).items()}


async def test_topics_below_a_prefix_become_files(
    broker: Mosquitto, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Each change is told; a message without a payload removes its topic; one that is not retained is none."""
    await publish(broker, {"app/a": "1", "app/dir/b": "1", "other": "x"})
    running = start_mirror(source(broker))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"a": "1", "dir/b": "1"}
    async with aiomqtt.Client("127.0.0.1", broker.port) as client:
        await client.publish("app/a", "passing", qos=1)
        await client.publish("app/c", "3", qos=1, retain=True)
    await eventually((Path(volume.path) / "c").exists)
    assert await files(volume) == {"a": "1", "c": "3", "dir/b": "1"}
    await publish(broker, {"app/dir/b": ""})
    await eventually(lambda: not (Path(volume.path) / "dir").exists())


async def test_one_topic_is_one_file(
    broker: Mosquitto, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    await publish(broker, {"app/menu.json": "{}", "app/other": "x"})
    running = start_mirror(source(broker, "app/menu.json"))
    await eventually(lambda: running.is_complete)
    assert await files(volume) == {"menu.json": "{}"}


async def test_a_removal_while_the_mirror_was_away_is_found(
    broker: Mosquitto, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """And a broker that lost all of its messages takes nothing away."""
    await publish(broker, {"app/a": "1", "app/b": "1", "app/gone": "1"})
    running = start_mirror(source(broker))
    await eventually(lambda: running.is_complete)
    broker.kill()
    await eventually(lambda: running.problem is not None)
    assert await files(volume) == {"a": "1", "b": "1", "gone": "1"}
    broker.start()  # without persistence: empty
    await eventually(lambda: "--allow-shrink" in (running.problem or ""))
    assert await files(volume) == {"a": "1", "b": "1", "gone": "1"}
    await publish(broker, {"app/a": "2", "app/b": "1"})
    await eventually(lambda: not (Path(volume.path) / "gone").exists())
    assert await files(volume) == {"a": "2", "b": "1"}


async def test_a_topic_that_one_reading_lacks_is_not_gone(
    broker: Mosquitto, start_mirror: StartMirror, volume: Volume, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The first reading loses a message on its way; the set is what two readings agree on."""
    await publish(broker, {"app/a": "1", "app/b": "1"})
    take = aiomqtt.Client._on_message
    lost: list[str] = []

    def lose(self: aiomqtt.Client, client: Any, userdata: Any, message: Any) -> None:
        if message.topic == "app/b" and not lost:
            lost.append(message.topic)
        else:
            take(self, client, userdata, message)

    monkeypatch.setattr(aiomqtt.Client, "_on_message", lose)
    running = start_mirror(source(broker))
    await eventually(lambda: running.is_complete)
    assert lost
    assert await files(volume) == {"a": "1", "b": "1"}


async def test_a_burst_of_topics_is_read_whole(
    broker: Mosquitto, start_mirror: StartMirror, volume: Volume, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The client discards messages that nobody takes in time, and says so to nobody."""
    monkeypatch.setattr(mqtt, "_MOST_WAITING_MESSAGES", 50)
    await publish(broker, {f"app/{number}": "1" for number in range(600)})
    running = start_mirror(source(broker))
    await eventually(lambda: running.is_complete)
    assert len(await files(volume)) == 600


async def test_messages_that_were_discarded_are_not_taken_for_removed(
    broker: Mosquitto, start_mirror: StartMirror, volume: Volume, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(mqtt, "_MOST_WAITING_MESSAGES", 1)
    await publish(broker, {f"app/{number}": "1" for number in range(600)})
    running = start_mirror(source(broker))
    await eventually(lambda: "more than 1 messages came at once" in (running.problem or ""))
    assert running.version is None


async def test_a_change_that_was_not_told_is_found(
    broker: Mosquitto, start_mirror: StartMirror, volume: Volume, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """By the next reading, and counted; so is a removal."""
    await publish(broker, {"app/a": "1", "app/b": "1", "app/c": "1"})
    running = start_mirror(source(broker, recheck=0.2, ping=0.1))
    await eventually(lambda: running.is_complete)
    before = metrics.MIRROR_RESCUES_TOTAL._value.get()
    apply = mqtt._Topics.apply
    missed: set[bytes] = set()

    def miss(self: mqtt._Topics, message: aiomqtt.Message) -> str:
        if message.payload in (b"2", b"") and message.payload not in missed:
            missed.add(message.payload)
            return "a"
        return apply(self, message)

    monkeypatch.setattr(mqtt._Topics, "apply", miss)
    await publish(broker, {"app/a": "2", "app/b": ""})
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")
    await eventually(lambda: not (Path(volume.path) / "b").exists())
    assert missed == {b"2", b""}
    assert metrics.MIRROR_RESCUES_TOTAL._value.get() > before


async def test_a_broker_that_hangs_is_noticed(
    broker: Mosquitto, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    await publish(broker, {"app/a": "1"})
    running = start_mirror(source(broker, ping=0.05, timeout=0.3))
    await eventually(lambda: running.is_complete)
    broker.stop()
    try:
        await eventually(lambda: "timed out" in (running.problem or ""))
        assert await files(volume) == {"a": "1"}
    finally:
        broker.resume()
    await publish(broker, {"app/a": "2"})
    await eventually(lambda: (Path(volume.path) / "a").read_text() == "2")


async def test_payloads_beyond_the_limit_are_not_taken(
    broker: Mosquitto, start_mirror: StartMirror, eventually: Eventually
) -> None:
    await publish(broker, {"app/a": "x" * 600, "app/b": "x" * 600})
    running = start_mirror(source(broker, max_bytes=1000))
    await eventually(lambda: "larger than 1000 bytes" in (running.problem or ""))


async def test_a_password_is_sent_by_tls_and_not_shown(
    tmp_path: Path, start_mirror: StartMirror, volume: Volume, eventually: Eventually
) -> None:
    """Read for each connection; the server is known by its authority."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", tmp_path / "key.pem",
         "-out", tmp_path / "cert.pem", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "ada", "right"], check=True, capture_output=True)  # fmt: skip
    broker = Mosquitto(
        tmp_path, f"cafile {tmp_path}/cert.pem", f"certfile {tmp_path}/cert.pem", f"keyfile {tmp_path}/key.pem",
        f"password_file {passwords}", "allow_anonymous false", f"user {getpass.getuser()}",
    )  # fmt: skip
    broker.start()
    secret = tmp_path / "password"
    secret.write_text("wrong-one")
    url = broker.url.replace("mqtt:", "mqtts:")
    try:
        running = start_mirror(
            MqttSource(f"{url}/app/", user="ada", password_file=str(secret), ca_file=str(tmp_path / "cert.pem"), settle=0.05)
        )  # fmt: skip
        await eventually(lambda: "Not authorized" in (running.problem or ""))
        assert "wrong-one" not in (running.problem or "")
        secret.write_text("right")
        parameters = aiomqtt.TLSParameters(ca_certs=str(tmp_path / "cert.pem"))
        await publish(broker, {"app/a": "1"}, username="ada", password="right", tls_params=parameters)  # fmt: skip
        await eventually((Path(volume.path) / "a").exists)
    finally:
        broker.kill()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mqtt://host/", "names no topic"),
        ("mqtt://host/app/+", "names no topic"),
        ("mqtt://ada:secret@host/app", "password_file"),
        ("mqtt://host/app#ca_file=a", "mqtts"),
        ("mqtt://host/app#password_file=a", "go together"),
    ],
)
def test_a_wrong_address_is_refused(url: str, said: str) -> None:
    with pytest.raises(_errors.ConfigError, match=said) as caught:
        factory.make_source(url)
    assert "secret" not in str(caught.value)
