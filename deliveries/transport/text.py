"""Making what a receiver sent harmless to look at."""

from __future__ import annotations

import re

# C0 and C1 controls except tab and newline, surrogates, invisible formatting and the
# bidirectional overrides that make a line read differently from what it is (CVE-2021-42574),
# line and paragraph separators, and noncharacters.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffc\ufffe\uffff\U000e0000-\U000e0fff]"
)


# Bytes of an answer that are kept for operators.
KEPT_BYTES = 1024


def text_for_operators(body: bytes, limit: int = KEPT_BYTES) -> str:
    """The first `limit` bytes of `body` as text that is safe to store, log and show.

    UTF-8; what is not becomes U+FFFD. Control characters become their pictures (NUL becomes
    U+2400), other invisible or misleading characters `<U+202E>`. Never raises.
    """
    cut = body[:limit]
    if cut.isascii() and (text := cut.decode("ascii")).isprintable():
        return text
    # A character that the limit cuts in half is left out, not shown as damaged.
    text = cut.decode("utf-8", errors="replace")
    if len(body) > limit and text.endswith("\ufffd"):
        text = cut.decode("utf-8", errors="ignore") if _is_cut(cut) else text
    return _HARMFUL.sub(_visible, text.replace("\r\n", "\n"))


def _is_cut(cut: bytes) -> bool:
    try:
        cut.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _visible(match: re.Match[str]) -> str:
    number = ord(match[0])
    if number < 0x20:
        return chr(0x2400 + number)
    return "\u2421" if number == 0x7F else f"<U+{number:04X}>"
