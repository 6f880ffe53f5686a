"""Events of a stream: who appeared, who was identified, who left; and where they are sent.

- :mod:`runtime.events.detector`: from tracked objects to events.
- :mod:`runtime.events.sinks`: JSON lines, MQTT, webhooks; each file there is one kind of receiver.
"""
