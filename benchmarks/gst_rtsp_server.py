"""An RTSP server of GStreamer's that sends a folder of numbered JPEG files as H.264, 25 a second, to each client anew.

Runs under a Python that has PyGObject and GStreamer's RTSP server (Debian: python3-gi, gir1.2-gst-rtsp-server-1.0,
gstreamer1.0-plugins-good, gstreamer1.0-plugins-ugly): ``python gst_rtsp_server.py PORT FOLDER``. It prints ``ready``.
"""

from __future__ import annotations

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - the versions come first

LAUNCH = (
    "( multifilesrc location={folder}/%05d.jpg loop=true caps=image/jpeg,framerate=25/1 ! jpegdec ! videoconvert ! "
    "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! rtph264pay name=pay0 pt=96 config-interval=1 )"
)


def main() -> None:
    Gst.init(None)
    if any(Gst.ElementFactory.find(name) is None for name in ("multifilesrc", "jpegdec", "x264enc", "rtph264pay")):
        raise SystemExit("GStreamer lacks an element: install gstreamer1.0-plugins-good and gstreamer1.0-plugins-ugly")
    server = GstRtspServer.RTSPServer()
    server.set_service(sys.argv[1])
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(LAUNCH.format(folder=sys.argv[2]))
    server.get_mount_points().add_factory("/live", factory)
    if server.attach(None) == 0:
        raise SystemExit(f"port {sys.argv[1]} is in use")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
