"""Measure this project: `make bench`, or `make bench-quick` for a glance.

    python benchmarks/bench.py [--quick] [--only NAME …]
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import scenarios
from place import CHECKOUT, open_place

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = sys.argv[1:]
    q = scenarios.QUICK
    with open_place(CHECKOUT / ".local" / "bench-h8") as place:
        for name in names:
            r = {
                "backlog": lambda: scenarios.backlog(place, q.backlog),
                "wide": lambda: scenarios.wide(place, q.wide_events),
                "live": lambda: scenarios.live(place, q.live_events),
                "narrow": lambda: scenarios.narrow(place, q.narrow_events, q.narrow_in_hundreds),
                "latency": lambda: scenarios.latency(place, q.steady_seconds),
            }[name]()
            for m in r if isinstance(r, list) else [r]:
                print(m)
                print({k: round(v/m.deliveries*1e6) for k, v in m.cpu.items()})
