from __future__ import annotations

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from deliveries.transport import classify, text_for_operators
from deliveries.transport.errors import Failure, from_failure
from deliveries.transport.libcurl import pycurl


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", ""),
        (b"plain", "plain"),
        (b"a\tb\nc\r\nd", "a\tb\nc\nd"),
        ("grün ✓".encode(), "grün ✓"),
        (b"a\0b\x1b[31mred\x07\x7f", "a␀b␛[31mred␇␡"),
        (b"a\rb", "a␍b"),
        (b"\xff\xfe\x80", "\ufffd\ufffd\ufffd"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        ("abc\u202ecba\u2066x".encode(), "abc<U+202E>cba<U+2066>x"),
        ("a\u200bb\ufeff\u2028\x85".encode(), "a<U+200B>b<U+FEFF><U+2028><U+0085>"),
    ],
)
def test_what_a_receiver_sent_is_shown_harmless(body: bytes, text: str) -> None:
    assert text_for_operators(body) == text


def test_a_character_that_the_limit_cuts_in_half_is_left_out() -> None:
    assert text_for_operators("aé".encode(), limit=2) == "a"
    assert text_for_operators(b"a\xff\xff", limit=2) == "a\ufffd"
    assert text_for_operators(b"x" * 5000) == "x" * 1024


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_become_text_that_can_be_stored_and_shown(body: bytes, limit: int) -> None:
    text = text_for_operators(body, limit)
    text.encode("utf-8")
    assert all(character in "\n\t" or ord(character) >= 0x20 for character in text)
    assert "\x7f" not in text


@given(
    st.builds(
        Failure,
        code=st.integers(0, 110),
        message=st.text(max_size=20),
        os_errno=st.integers(0, 133),
        https=st.booleans(),
        timeout=st.floats(0.1, 600),
        connect=st.sampled_from([0.0, 0.1]),
        tls=st.sampled_from([0.0, 0.1]),
        first_byte=st.sampled_from([0.0, 0.1]),
        verify_result=st.integers(0, 100),
    )
)
def test_every_failure_of_libcurl_becomes_an_exception_of_requests(failure: Failure) -> None:
    error = from_failure(failure)
    assert isinstance(error, requests.RequestException)
    assert classify(error) in {
        "timeout", "dns", "own_dns", "refused", "reset", "tls", "protocol", "blocked",
        "shutdown", "internal", "other",
    }  # fmt: skip
    assert 0 < len(str(error)) < 100


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (requests.ConnectTimeout(), "timeout"),
        (requests.ReadTimeout(), "timeout"),
        (requests.exceptions.SSLError(), "tls"),
        (requests.exceptions.ChunkedEncodingError(), "protocol"),
        (requests.ConnectionError(), "other"),
        (requests.RequestException(), "other"),
        (RuntimeError(), "other"),
    ],
)
def test_any_error_has_a_code(error: Exception, code: str) -> None:
    assert classify(error) == code


def test_a_timeout_says_what_was_waited_for() -> None:
    def text(**reached: float) -> str:
        times = {"connect": 0.0, "tls": 0.0, "first_byte": 0.0, **reached}
        return str(
            from_failure(
                Failure(
                    code=pycurl.E_OPERATION_TIMEDOUT,
                    message="",
                    os_errno=0,
                    https=True,
                    timeout=10.0,
                    verify_result=0,
                    **times,
                )
            )
        )

    assert text() == "no connection within 10 s"
    assert text(connect=1) == "TLS handshake not finished within 10 s"
    assert text(connect=1, tls=1) == "no answer within 10 s"
    assert text(connect=1, tls=1, first_byte=1) == "answer not finished within 10 s"
