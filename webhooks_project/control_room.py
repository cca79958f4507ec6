"""How the admin looks: the settings of django-unfold.

The sidebar names what an operator looks for, in the order in which he looks; a page that somebody
may not see is not offered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.urls import reverse, reverse_lazy


def _may_view(model: str) -> Callable[[HttpRequest], bool]:
    app, name = model.split(".")
    return lambda request: request.user.has_perm(f"{app}.view_{name}")


def _page(title: str, icon: str, model: str) -> dict[str, Any]:
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{model.replace('.', '_')}_changelist"),
        "permission": _may_view(model),
    }


def _is_about_events(request: HttpRequest) -> bool:
    """Not on the page of the next item, which is below theirs."""
    return request.path.startswith(reverse("admin:deliveries_event_changelist")) and (
        request.path != reverse("admin:deliveries_event_reach")
    )


CONTROL_ROOM: dict[str, Any] = {
    "SITE_TITLE": "Webhooks",
    "SITE_HEADER": "Webhooks",
    "SITE_SYMBOL": "webhook",
    "SITE_URL": None,
    "DASHBOARD_CALLBACK": "deliveries.admin.dashboard.dashboard",
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "6px",
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 254.604)",
            "100": "oklch(93.2% .032 255.585)",
            "200": "oklch(88.2% .059 254.128)",
            "300": "oklch(80.9% .105 251.813)",
            "400": "oklch(70.7% .165 254.624)",
            "500": "oklch(62.3% .214 259.815)",
            "600": "oklch(54.6% .245 262.881)",
            "700": "oklch(48.8% .243 264.376)",
            "800": "oklch(42.4% .199 265.638)",
            "900": "oklch(37.9% .146 265.522)",
            "950": "oklch(28.2% .091 267.935)",
        },
    },
    "SIDEBAR": {
        "show_search": False,
        "show_all_applications": False,
        "navigation": [
            {
                "items": [
                    {
                        "title": "Dashboard",
                        "icon": "monitoring",
                        "link": reverse_lazy("admin:index"),
                    },
                    _page("Subscriptions", "hub", "subscriptions.subscription"),
                    _page("Deliveries", "outbox", "deliveries.delivery"),
                    _page("Attempts", "http", "deliveries.attempt"),
                    {
                        **_page("Events", "bolt", "deliveries.event"),
                        "active": _is_about_events,
                    },
                    {
                        "title": "Whom would a topic reach?",
                        "icon": "alt_route",
                        "link": reverse_lazy("admin:deliveries_event_reach"),
                        "permission": _may_view("subscriptions.subscription"),
                    },
                ],
            },
            {
                "title": "Access",
                "separator": True,
                "items": [
                    _page("Audit", "history", "subscriptions.auditentry"),
                    _page("API keys", "key", "api.apikey"),
                    _page("Users", "person", "auth.user"),
                    _page("Groups", "group", "auth.group"),
                ],
            },
            {
                "title": "Schedule",
                "separator": True,
                "collapsible": True,
                "items": [
                    _page("Periodic tasks", "schedule", "django_celery_beat.periodictask"),
                    _page("Intervals", "timelapse", "django_celery_beat.intervalschedule"),
                    _page("Crontabs", "update", "django_celery_beat.crontabschedule"),
                ],
            },
        ],
    },
}
