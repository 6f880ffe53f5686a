"""Events as MQTT messages, with Eclipse Paho."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from importlib import util
from typing import Any
from urllib.parse import unquote, urlsplit

from runtime.common.addresses import without_password
from runtime.common.extras import install_command
from runtime.errors import InputError, MissingDependencyError
from runtime.events.outbox import Outbox

_log = logging.getLogger("edgevis.events")

SCHEMES = ("mqtt://", "mqtts://")
DEFAULT_TOPIC = "edgevis/events"
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_TIMEOUT_S = 5.0
_STOP_S = 0.5


def open_sink(address: str) -> MqttSink:
    """A broker's topic; InputError when the address is malformed, MissingDependencyError without Paho."""
    return MqttSink(address)


class MqttSink(Outbox):
    """Publishes events with quality of service 1: the broker acknowledges each, and each arrives at least once.

    Args:
        address: ``mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC``, ``mqtts://`` with TLS; the topic is ``edgevis/events``
            unless one is named.
    """

    def __init__(self, address: str) -> None:
        if util.find_spec("paho") is None:
            raise MissingDependencyError(f"events over MQTT need paho-mqtt: {install_command('mqtt')}")
        try:
            parts = urlsplit(address)
            port, host = parts.port or _PORTS[parts.scheme], parts.hostname
            topic = unquote(parts.path.strip("/")) or DEFAULT_TOPIC
        except ValueError:  # of the port, or of brackets
            host = None
        if not host or any(wild in address.rpartition("@")[2] for wild in "+#"):
            raise InputError(
                f"events: {without_password(address)!r} is no MQTT topic; allowed: mqtt://HOST[:PORT]/TOPIC, no + or #"
            )
        self._host, self._port, self._topic = host, port, topic
        self._connected = threading.Event()
        self._client = self._opened(parts.scheme == "mqtts", parts.username, parts.password)
        super().__init__(f"{parts.scheme}://{self._host}:{port}/{topic}", self._publish)

    def close(self, *, timeout_s: float = 5.0) -> None:
        super().close(timeout_s=timeout_s)
        self._client.disconnect()
        # Paho waits for its thread without a limit, and that one for the network.
        stopping = threading.Thread(target=self._client.loop_stop, daemon=True)
        stopping.start()
        stopping.join(_STOP_S)

    def _opened(self, tls: bool, user: str | None, password: str | None) -> Any:
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        if user is not None:
            client.username_pw_set(unquote(user), None if password is None else unquote(password))
        if tls:
            client.tls_set()
        client.connect_timeout = _TIMEOUT_S
        client.reconnect_delay_set(min_delay=1, max_delay=30)
        client.on_connect = self._on_connect
        client.on_disconnect = lambda *_: self._connected.clear()
        client.connect_async(self._host, self._port)
        client.loop_start()  # connects, and connects again, in a thread of its own
        return client

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            _log.warning("the MQTT broker %s refuses the connection: %s", self._host, reason)
        else:
            self._connected.set()

    def _publish(self, event: Mapping[str, Any]) -> None:
        if not self._connected.wait(_TIMEOUT_S):
            raise OSError("there is no connection to the broker")
        message = self._client.publish(self._topic, json.dumps(event, allow_nan=False), qos=1)
        try:
            message.wait_for_publish(_TIMEOUT_S)
        except (RuntimeError, ValueError) as error:
            raise OSError(str(error)) from error
        if not message.is_published():
            raise OSError("the broker did not acknowledge it")
