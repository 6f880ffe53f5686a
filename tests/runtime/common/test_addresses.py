"""What is shown of an address: never its password."""

from __future__ import annotations

import pytest

from runtime.common.addresses import check_address, hide, without_password
from runtime.errors import InputError


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://user:secret@camera:554/x?a=1", "rtsp://***@camera:554/x?a=1"),
        ("rtsp://user:se@c:r/e?t#@camera/1", "rtsp://***@camera/1"),
        ("rtsp://user:se#cret@camera/1", "rtsp://***@camera/1"),
        ("rtsp://user@camera/1", "rtsp://***@camera/1"),
        ("rtsp:/user:secret@camera/1", "rtsp:/***@camera/1"),
        ("http://camera/cgi?user=a&password=secret&x=1", "http://camera/cgi?user=a&password=***&x=1"),
        ("http://camera/cgi?usr=a&pwd=secret", "http://camera/cgi?usr=a&pwd=***"),
        ("rtsp://camera/user=admin_password=secret_channel=1.sdp", "rtsp://camera/user=admin_password=***"),
        ("tcp://a:secret@h1 failed, then rtsp://b:secret@h2/y", "tcp://***@h1 failed, then rtsp://***@h2/y"),
        ("http://camera/a@b", "http://camera/a@b"),
        ("rtsp://camera:554/1", "rtsp://camera:554/1"),
        ("a plain text", "a plain text"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert without_password(address) == shown


def test_the_password_is_hidden_wherever_a_library_repeats_it() -> None:
    assert (
        hide("login with se#cret or se%23cret failed", "rtsp://u:se%23cret@camera/") == "login with *** or *** failed"
    )


@pytest.mark.parametrize("address", ["rtsp://u:secret@camera/\udce9", "rtsp://u:secret@camera/\n1"])
def test_an_address_that_no_reader_takes(address: str) -> None:
    with pytest.raises(InputError, match="the address") as caught:
        check_address(address)
    assert "secret" not in str(caught.value)
