"""Every page that the web has, in the system that `seeding` makes."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.urls import NoReverseMatch, reverse

from deliveries.admin.acts import ACTS
from deliveries.models import Attempt, Delivery, Event
from subscriptions.models import AuditEntry, Subscription


def every_page(found: dict[str, Subscription]) -> dict[str, str]:
    """The address of each page by its name: of each model the list, and the pages of one row; the
    acts; what is no model's. `found`: what `seed` returned."""
    tripped = found["tidewater/invoices"]
    pages = {
        "login": reverse("admin:login"),
        "dashboard": reverse("admin:index"),
        "password": reverse("admin:password_change"),
        "apps": reverse("admin:app_list", args=["subscriptions"]),
        "api-docs": reverse("api:openapi-view"),
        "api-problems": "/api/problems",
        "no-such-page": "/admin/no-such-page/",
    }
    for model in sorted(admin.site._registry, key=lambda model: model._meta.label_lower):
        pages |= _of_model(model, tripped)
    name = "subscriptions-subscription"
    pages[f"{name}-list-tripped"] = f"{pages[f'{name}-list']}?state=tripped"
    pages[f"{name}-list-none"] = f"{pages[f'{name}-list']}?q=nothing+is+called+so"
    for label, key in [
        ("active", "order-fulfilment"),
        ("failing", "loyalty-points"),
        ("paused", "old-warehouse"),
    ]:
        pages[f"{name}-{label}"] = _page("subscriptions_subscription_change", found[key])
    for act in ACTS.values():
        one = found["old-warehouse"] if act.name == "resume" else tripped
        pages[f"{name}-act-{act.name}"] = _page(f"subscriptions_subscription_{act.name}", one)
    pages[f"{name}-rotate-secret"] = _page("subscriptions_subscription_rotate_secret", tripped)
    pages[f"{name}-reset-fuse"] = reverse("admin:subscriptions_subscription_reset_fuse")
    name = "deliveries-event"
    pages[f"{name}-reach"] = reverse("admin:deliveries_event_reach")
    pages[f"{name}-reach-topic"] = f"{pages[f'{name}-reach']}?topic=order.paid&tenant=oakmere"
    for status in ("held", "pending", "failed"):
        delivery = Delivery.objects.filter(status=status).latest("attempt_count", "id")
        pages[f"deliveries-delivery-{status}"] = _page("deliveries_delivery_change", delivery)
        act = "resend" if status == "failed" else "discard"
        pages[f"deliveries-delivery-{act}"] = _page(f"deliveries_delivery_{act}", delivery)
    return pages


def _page(view: str, row: Model) -> str:
    return reverse(f"admin:{view}", args=[row.pk])


def _row(model: type[Model], tripped: Subscription) -> Any:
    """The row that has most to show."""
    if model is Subscription:
        return tripped
    if model is Delivery:
        return Delivery.objects.filter(status="succeeded").order_by("-attempt_count", "id").first()
    if model is Event:
        return Event.objects.get(pk=Delivery.objects.filter(status="held").latest("id").event_id)
    if model is Attempt:
        return Attempt.objects.exclude(response_body="").filter(status_code__gte=500).first()
    if model is AuditEntry:
        return AuditEntry.objects.filter(action="tripped").first()
    return model._default_manager.first()


def _of_model(model: type[Model], tripped: Subscription) -> dict[str, str]:
    app, name = model._meta.app_label, model._meta.model_name
    pages = {f"{app}-{name}-list": reverse(f"admin:{app}_{name}_changelist")}
    made_in_the_admin = app not in ("deliveries",) and model is not AuditEntry
    if made_in_the_admin:
        pages[f"{app}-{name}-add"] = reverse(f"admin:{app}_{name}_add")
    row = _row(model, tripped)
    if row is None:
        return pages
    views = ["change", "history"] + (["delete"] if made_in_the_admin else [])
    for view in views:
        try:
            pages[f"{app}-{name}-{view}"] = _page(f"{app}_{name}_{view}", row)
        except NoReverseMatch:
            continue
    return pages
