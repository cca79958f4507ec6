"""The one import of pycurl, made deaf to a variable that would write down TLS secrets.

libcurl reads `SSLKEYLOGFILE` once, when the first handle of the process is made. Every other
variable that it knows (proxies, `.netrc`) is overruled by options on each handle.
"""

from __future__ import annotations

import os

_hidden = os.environ.pop("SSLKEYLOGFILE", None)
try:
    import pycurl

    pycurl.Curl().close()
finally:
    if _hidden is not None:
        os.environ["SSLKEYLOGFILE"] = _hidden

__all__ = ["pycurl"]
