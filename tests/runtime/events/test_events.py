"""Events of tracks, and their delivery to files, real servers and a real broker."""

from __future__ import annotations

import base64
import json
import logging
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import InputError, OutputError
from runtime.events.detector import EventDetector
from runtime.events.outbox import MAX_WAITING, Outbox
from runtime.events.sinks import open_sink
from runtime.streams.frame import Frame
from runtime.tracking.objects import TrackedObject

IMAGE = np.zeros((8, 8, 3), np.uint8)


def frame(index: int, source: int = 0) -> Frame:
    return Frame(IMAGE, source, index, index / 10, index / 10)


def tracked(track: int, identity: str, label: str | None = None) -> TrackedObject:
    box = np.array([1, 2, 3, 4], np.float32)
    return TrackedObject(track, box, 0.5, label, identity, (), "person", 0.9, True)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_a_visit_makes_three_events() -> None:
    detector = EventDetector(left_after_s=1.0)
    found = []
    for index in range(40):
        identity, label = ("unknown", None) if index < 5 else ("unknown-1", None) if index < 10 else ("ann", "ann")
        present = [tracked(7, identity, label)] if index < 20 and index != 15 else []
        found += detector.update(frame(index), present)
    events = [(event.type, event.frame, event.identity, event.previous) for event in found]
    assert events == [
        ("appeared", 5, "unknown-1", None),
        ("identified", 10, "ann", "unknown-1"),
        ("left", 19, "ann", None),
    ]
    assert found[-1].seconds == pytest.approx(1.9)
    assert found[1].label == "ann"
    assert json.loads(json.dumps(found[0].to_dict()))["box_xyxy"] == [1, 2, 3, 4]
    assert detector.close() == []


def test_a_label_at_once_appears_and_is_identified_and_the_end_of_the_stream_is_a_leave() -> None:
    detector = EventDetector()
    found = detector.update(frame(0), [tracked(1, "bob", "bob"), tracked(2, "unknown")])
    assert [event.type for event in found] == ["appeared", "identified"]
    assert [(event.type, event.track) for event in detector.close()] == [("left", 1)]


def test_sources_have_clocks_of_their_own() -> None:
    detector = EventDetector(left_after_s=1.0)
    detector.update(frame(0, 0), [tracked(1, "unknown-1")])
    for index in range(100):
        assert detector.update(frame(index, 1), []) == []
    assert [event.source for event in detector.update(frame(30, 0), [])] == [0]


def test_images_without_times_pass_at_25_a_second() -> None:
    detector = EventDetector(left_after_s=0.99)
    still = [Frame(IMAGE, 0, index, 0.0, 0.0) for index in range(40)]
    detector.update(still[0], [tracked(1, "unknown-1")])
    left = [index for index in range(1, 40) if detector.update(still[index], [])]
    assert left == [25]


def test_a_file_gets_lines_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for number in range(2):
        sink = open_sink(str(path))
        sink.send({"number": number})
        assert len(path.read_text().splitlines()) == number + 1  # at once
        sink.close()
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [0, 1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OutputError, match="cannot be written"):
        open_sink(str(tmp_path / "no" / "folder.jsonl"))


def test_jsonl_is_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    sink = open_sink("jsonl")
    sink.send({"type": "left"})
    sink.close()
    assert json.loads(capsys.readouterr().out) == {"type": "left"}


MALFORMED = [
    "ftp://u:geheim@host/path",
    "http://",
    "http://u:geheim@",
    "http://host:99999/",
    "http://[::1/",
    "http://host/grün",
    "mqtt://u:geheim@/x",
    "mqtt://host/a/#",
    "mqtt://host:0x/a",
    "mqtt://[::1/a",
]


@pytest.mark.parametrize("address", [*MALFORMED, "http://host/a b"])
def test_other_addresses_are_refused(address: str) -> None:
    if address.startswith("mqtt"):
        pytest.importorskip("paho.mqtt")
    with pytest.raises(InputError, match="allowed") as raised:
        open_sink(address)
    assert "geheim" not in str(raised.value)


def test_a_file_on_a_full_disk_is_named() -> None:
    sink = open_sink("/dev/full")
    for use in (lambda: sink.send({"type": "left"}), sink.close):
        with pytest.raises(OutputError, match=r"events cannot be written to /dev/full: .*No space left"):
            use()


class Hook:
    """A webhook that answers with the given statuses in turn, then with 200."""

    def __init__(self, *statuses: int, port: int = 0) -> None:
        self.bodies: list[Any] = []
        self.logins: list[str | None] = []
        answers = iter(statuses)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.logins.append(self.headers["Authorization"])
                status = next(answers, 200)
                if status == 200:
                    hook.bodies.append(json.loads(body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        hook = self
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def numbers(self) -> list[int]:
        return [body["number"] for body in self.bodies]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_webhook_gets_each_event_once_and_in_order() -> None:
    hook = Hook()
    sink = open_sink(f"http://127.0.0.1:{hook.port}/events")
    for number in range(50):
        sink.send({"number": number})
    sink.close(timeout_s=10)
    assert hook.numbers == list(range(50))
    hook.close()


def test_a_webhook_that_fails_is_tried_again_and_one_that_refuses_is_not(caplog: pytest.LogCaptureFixture) -> None:
    hook = Hook(503, 404, 302)
    sink = open_sink(f"http://127.0.0.1:{hook.port}/events")
    for number in range(4):
        sink.send({"number": number})
    sink.close(timeout_s=10)
    assert hook.numbers == [2, 3]  # 0 was tried again, and refused; 1 was redirected
    assert [record.getMessage()[-10:] for record in caplog.records] == ["status 503", "status 404", "status 302"]
    hook.close()


def test_a_webhook_with_a_login(caplog: pytest.LogCaptureFixture) -> None:
    hook = Hook(503)
    sink = open_sink(f"http://us%40er:geheim@127.0.0.1:{hook.port}/events")
    sink.send({"number": 1})
    sink.close(timeout_s=10)
    assert hook.logins == [f"Basic {base64.b64encode(b'us@er:geheim').decode()}"] * 2
    assert f"http://127.0.0.1:{hook.port}/events did not take an event" in caplog.text
    assert "geheim" not in caplog.text
    hook.close()


def test_an_event_that_cannot_be_delivered_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    taken: list[int] = []

    def deliver(event: Any) -> None:
        taken.append(event["number"])

    outbox = Outbox("test", deliver)
    outbox.send({})
    outbox.send({"number": 1})
    outbox.close(timeout_s=10)
    assert (taken, outbox.sent) == ([1], 1)
    assert "test cannot be given an event, which is dropped: KeyError('number')" in caplog.text


def test_a_receiver_that_is_away_holds_up_nothing_and_gets_the_events_later(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    sink = open_sink(f"http://127.0.0.1:{port}/events")
    started = time.monotonic()
    for number in range(20):
        sink.send({"number": number})
    assert time.monotonic() - started < 0.25
    until(lambda: "it is tried again" in caplog.text)
    hook = Hook(port=port)
    until(lambda: hook.numbers == list(range(20)))
    sink.close()
    hook.close()


def test_closing_does_not_wait_for_a_receiver_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, answers nothing
        sink = open_sink(f"http://127.0.0.1:{silent.getsockname()[1]}/events")
        sink.send({"number": 1})
        started = time.monotonic()
        with caplog.at_level(logging.WARNING):
            sink.close(timeout_s=0.3)
        assert time.monotonic() - started < 2
    assert "did not take the last 1 events" in caplog.text


def test_what_nobody_takes_is_bounded_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()
    taken: list[int] = []

    def deliver(event: Any) -> None:
        released.wait()
        taken.append(event["number"])

    outbox = Outbox("test", deliver)
    for number in range(MAX_WAITING + 100):
        outbox.send({"number": number})
    assert outbox.dropped >= 99
    assert len(caplog.records) == 1
    released.set()
    outbox.close(timeout_s=10)
    assert len(taken) <= MAX_WAITING + 1
    assert taken[-1] == MAX_WAITING + 99
    assert taken == sorted(taken)


@pytest.fixture
def broker() -> Iterator[int]:
    """The port of a real MQTT broker on this machine."""
    amqtt = pytest.importorskip("amqtt.broker")
    import asyncio

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    loop = asyncio.new_event_loop()
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    started = threading.Event()
    brokers: list[Any] = []

    async def start() -> None:
        brokers.append(amqtt.Broker(config))
        await brokers[0].start()
        started.set()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(10)
    yield port
    asyncio.run_coroutine_threadsafe(brokers[0].shutdown(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.mark.filterwarnings("ignore")  # the broker's own
def test_a_broker_gets_each_event(broker: int) -> None:
    pytest.importorskip("paho.mqtt")
    from paho.mqtt import client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    received: list[int] = []
    subscribed = threading.Event()
    subscriber = mqtt.Client(CallbackAPIVersion.VERSION2)
    subscriber.on_connect = lambda client, *_: client.subscribe("hall/door", qos=1)
    subscriber.on_subscribe = lambda *_: subscribed.set()
    subscriber.on_message = lambda client, data, message: received.append(json.loads(message.payload)["number"])
    subscriber.connect("127.0.0.1", broker)
    subscriber.loop_start()
    assert subscribed.wait(10)
    sink = open_sink(f"mqtt://127.0.0.1:{broker}/hall/door")
    for number in range(20):
        sink.send({"number": number})
    sink.close(timeout_s=10)
    until(lambda: len(received) >= 20)
    assert received == list(range(20))
    subscriber.disconnect()
    subscriber.loop_stop()
