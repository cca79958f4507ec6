"""How long each page of the control room takes beside ten million deliveries: `make bench-pages`.

    python benchmarks/pages.py [--deliveries N] [--directory DIR] [--keep | --again]

Makes a database of its own by SQL, asks for every page as an administrator (through Django, without
a web server), prints a table in Markdown, and removes the database. Exit status 1 if a page takes
longer than 500 ms, or the dashboard longer than 300 ms.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from place import CHECKOUT, Place, open_place

SUBSCRIPTIONS = 1000
AUDIT = 1_000_000


def make(place: Place, deliveries: int) -> None:
    from filling import OF_EVENT, Size, fill, without_indexes

    began = time.monotonic()
    size = Size(SUBSCRIPTIONS, deliveries // OF_EVENT, min(AUDIT, deliveries))
    with place.connect() as connection:
        with without_indexes(connection):
            for made in fill(connection, size):
                say(f"{made:,} of {size.deliveries:,} deliveries", began)
        row = connection.execute("SELECT pg_database_size(current_database()) / 1e9").fetchone()
    print(
        f"{size.deliveries:,} deliveries, {size.subscriptions:,} subscriptions and {size.audit:,} "
        f"entries of the audit, {row[0] if row else 0:.1f} GB, made in "
        f"{time.monotonic() - began:.0f} s."
    )


def measure(place: Place) -> bool:
    """Whether each page kept its limit."""
    import django

    django.setup()
    # What they import needs the settings.
    from control_room import cost, pages, signed_in, summary, table

    began = time.monotonic()
    client = signed_in()
    costs = []
    for page in pages(client):
        costs.append(cost(client, page))
        say(f"{len(costs)} pages", began)
    print("", *table(costs), "", "The slowest of each kind:", "", *summary(costs), sep="\n")
    late = [one.page for one in costs if not one.kept]
    for page in late:
        print(f"over {page.limit:.0f} ms: {page.name}  {page.address}", file=sys.stderr)
    took = time.monotonic() - began
    print(f"\n{len(costs)} pages in {took:.0f} s, {len(late)} of them over their limit.")
    return not late


def say(what: str, began: float) -> None:
    """On a terminal, one line, which the next one takes the place of."""
    if sys.stderr.isatty():
        print(f"\r\033[K{time.monotonic() - began:4.0f} s  {what}", end="", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deliveries", type=int, default=10_000_000, metavar="N")
    parser.add_argument("--directory", type=Path, default=CHECKOUT / ".local" / "bench-pages")
    parser.add_argument("--keep", action="store_true", help="leave the database there")
    parser.add_argument(
        "--again", action="store_true", help="use what --keep has left, and keep it"
    )
    options = parser.parse_args()
    # So that the blocks that end the engines run for `kill` as they do for Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    directory = options.directory.resolve()
    try:
        with open_place(directory, again=options.again) as place:
            if not options.again:
                place.make_ours()
                make(place, options.deliveries)
            return 0 if measure(place) else 1
    finally:
        if not (options.keep or options.again):
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
