"""`make screenshots`: a picture of every page, light and dark, 1280 and 400 px wide.

    python -m tests.browser.screenshots [--only PART] [--to DIRECTORY]

On a system of its own, in `.local/screenshots`, with a day of traffic that was never sent: there
are no workers, the pages are only told of some. Two of the pictures are those of the README, in
`docs/pictures`; with `--only` they stay as they are.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKERS = {"deliver1": "deliver", "deliver2": "deliver", "recover": "recover maintenance"}
# The file, and how high it is.
README = {"dashboard": ("dashboard", 1150), "deliveries-delivery-pending": ("delivery", 710)}
SCHEMES = ("light", "dark")
# Of a longer page its beginning.
MAX_HEIGHT = 3200


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of every page.")
    parser.add_argument("--only", default="", help="pages whose name has this part")
    parser.add_argument("--to", type=Path, default=ROOT / ".local" / "pictures")
    options = parser.parse_args()
    os.environ["WEBHOOKS_LOCAL_DIR"] = str(ROOT / ".local" / "screenshots")
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.browser.settings"
    import django

    django.setup()
    from django.db import connection

    from deliveries.monitoring.workers import Presence
    from tests.browser import system
    from tests.browser.pages import every_page
    from tests.browser.seeding import seed
    from webhooks_project.engines import Cluster
    from webhooks_project.programs import listen, web, web_url

    options.to.mkdir(parents=True, exist_ok=True)
    with Cluster(os.environ["WEBHOOKS_LOCAL_DIR"]) as cluster, listen("127.0.0.1", 0) as listener:
        cluster.start()
        system.make_database(cluster)
        pages = every_page(seed())
        operator = system.make_user("operator")
        seen = [Presence(f"{name}@hooks-1", queues.split()) for name, queues in WORKERS.items()]
        with system.running([web(listener)], options.to / "web.log"):
            take(web_url(listener), operator, pages, options.only, options.to)
        for worker in seen:
            worker.end()
        connection.close()
        connection.close_pool()  # type: ignore[attr-defined]
    print(f"The pictures are in {options.to}")


def take(url: str, operator: object, pages: dict[str, str], only: str, to: Path) -> None:
    from deliveries.monitoring.sweeps import mark_sweep
    from tests.browser import system

    readme = ROOT / "docs" / "pictures"
    readme.mkdir(exist_ok=True)
    with system.chromium() as browser:
        for width, height in ((1280, 860), (400, 800)):
            anonymous, signed_in = (
                browser.new_context(base_url=url, viewport={"width": width, "height": height})
                for _ in range(2)
            )
            system.sign_in(signed_in, url, operator)
            pair = anonymous.new_page(), signed_in.new_page()
            for name, path in pages.items():
                if only not in name:
                    continue
                mark_sweep()
                page = pair[name != "login"]
                page.set_viewport_size({"width": width, "height": height})
                page.goto(path, wait_until="networkidle")
                if name == "api-docs":
                    page.locator(".opblock").first.wait_for()
                if width == 1280 and name in README and not only:
                    file, high = README[name]
                    page.set_viewport_size({"width": width, "height": high})
                    for scheme in SCHEMES:
                        system.put_on(page, scheme)
                        page.screenshot(path=readme / f"{file}-{scheme}.png")
                # What sticks to the window's edge is to be at the page's end.
                whole = page.evaluate("document.documentElement.scrollHeight")
                page.set_viewport_size({"width": width, "height": min(whole, MAX_HEIGHT)})
                for scheme in SCHEMES:
                    system.put_on(page, scheme)
                    page.screenshot(path=to / f"{name}-{width}-{scheme}.png")


if __name__ == "__main__":
    main()
