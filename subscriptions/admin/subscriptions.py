"""Subscriptions in Django's admin: who is subscribed, how it goes, and what an operator can do.

`deliveries.admin.history` adds what is known of deliveries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import F, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import ngettext

from subscriptions import circuit
from subscriptions.admin.careful import CarefulAdmin
from subscriptions.admin.display import ago, host, short, state_chip
from subscriptions.admin.forms import RotateSecretForm, SubscriptionForm
from subscriptions.admin.tenants import ChosenTenant, tenant_link
from subscriptions.conf import conf
from subscriptions.models import Subscription


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("tripped", "Tripped"),
            ("failing", "Failing"),
            ("paused", "Paused"),
            ("active", "Active"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """As the chips say it: an active one that fails is failing."""
        if self.value() == "failing":
            return queryset.active().filter(consecutive_failures__gt=0)  # type: ignore[attr-defined, no-any-return]
        if self.value() == "active":
            return queryset.active().filter(consecutive_failures=0)  # type: ignore[attr-defined, no-any-return]
        if self.value() in ("tripped", "paused"):
            return getattr(queryset, str(self.value()))()  # type: ignore[no-any-return]
        return queryset


class TenantFilter(ChosenTenant):
    """Also offers those of no tenant: of subscriptions there are few enough to read them all."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("", "The application itself"), *super().lookups(request, model_admin)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset if self.value() is None else queryset.filter(tenant=self.value())


@admin.register(Subscription)
class SubscriptionAdmin(CarefulAdmin):
    form = SubscriptionForm
    list_display: tuple[str, ...] = (
        "name",
        "whose",
        "state_now",
        "receiver",
        "failures",
        "succeeded",
        "error",
    )
    list_filter = (StateFilter, TenantFilter)
    show_facets = admin.ShowFacets.NEVER
    search_fields = ("name", "url", "tenant")
    search_help_text = "Name, URL or tenant"
    # What needs an operator comes first. Sorted is by what has an index.
    sortable_by = ("name",)
    ordering = (F("auto_disabled_at").desc(nulls_last=True), "name")
    readonly_fields: ClassVar[tuple[str, ...]] = (
        "state_now",
        "failures",
        "tripped",
        "succeeded",
        "failed",
        "last_error",
        "next_probe",
        "signing_secrets",
        "id",
        "created_at",
        "updated_at",
    )
    how_it_goes: tuple[str, ...] = (
        "failures",
        "succeeded",
        "failed",
        "last_error",
        "tripped",
        "next_probe",
    )
    actions: tuple[str, ...] = (
        "reset_circuit",
        "pause",
        "resume",
    )
    change_list_template = "admin/subscriptions/subscription/change_list.html"
    change_form_template = "admin/subscriptions/subscription/change_form.html"

    class Media:
        css: ClassVar = {"all": ["subscriptions/admin.css"]}

    def get_fieldsets(self, request: HttpRequest, obj: Subscription | None = None) -> Any:
        # Groups are a way to edit patterns, nothing of the subscription's own to be read.
        editable = self.has_change_permission(request, obj) if obj else True
        patterns = ["groups", "topic_patterns"] if conf().topic_groups else ["topic_patterns"]
        receiver = ["name", "tenant", "all_tenants", "url"]
        receiver += patterns if editable else ["topic_patterns"]
        sending = ["max_in_flight", "recovery", "headers"]
        if obj is None:
            return [(None, {"fields": [*receiver, "enabled"]}), ("Sending", {"fields": sending})]
        return [
            (None, {"fields": [("state_now", "enabled"), *receiver]}),
            ("Sending", {"fields": sending}),
            ("How it goes", {"fields": self.how_it_goes}),
            ("Secrets", {"fields": ["signing_secrets"]}),
            ("Record", {"fields": ["id", "created_at", "updated_at"], "classes": ["collapse"]}),
        ]

    # Columns and read-only fields.

    @admin.display(description="state")
    def state_now(self, subscription: Subscription) -> SafeString:
        return state_chip(subscription)

    @admin.display(description="tenant")
    def whose(self, subscription: Subscription) -> SafeString | str:
        if subscription.all_tenants:
            return "all tenants"
        return tenant_link(subscription.tenant, "subscriptions_subscription_changelist")

    @admin.display(description="receiver")
    def receiver(self, subscription: Subscription) -> SafeString:
        return format_html(
            '<span title="{}">{}</span>', subscription.url, short(host(subscription.url), 28)
        )

    @admin.display(description="fails")
    def failures(self, subscription: Subscription) -> int:
        return subscription.consecutive_failures

    @admin.display(description="last success")
    def succeeded(self, subscription: Subscription) -> SafeString | str:
        return ago(subscription.last_success_at)

    @admin.display(description="last failure")
    def failed(self, subscription: Subscription) -> SafeString | str:
        return ago(subscription.last_failure_at)

    @admin.display(description="tripped")
    def tripped(self, subscription: Subscription) -> SafeString | str:
        return ago(subscription.auto_disabled_at)

    @admin.display(description="next probe")
    def next_probe(self, subscription: Subscription) -> str:
        if subscription.next_probe_at is None:
            return "–"
        return f"{subscription.next_probe_at:%Y-%m-%d %H:%M:%S} UTC"

    @admin.display(description="last error")
    def error(self, subscription: Subscription) -> SafeString | str:
        return short(subscription.last_error, 45)

    @admin.display(description="signing secrets")
    def signing_secrets(self, subscription: Subscription) -> SafeString | str:
        secrets = list(subscription.secrets.live())
        if not secrets:
            return "None: nothing can be sent. Rotate the secret to make subscription."
        return format_html_join(
            "",
            "<div>Made {}{}</div>",
            (
                (ago(secret.created_at), f", ends {secret.expires_at:%Y-%m-%d %H:%M} UTC"
                 if secret.expires_at else "")
                for secret in secrets
            ),
        )  # fmt: skip

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        tripped = Subscription.objects.tripped().count()
        return super().changelist_view(request, {**(extra_context or {}), "tripped_count": tripped})

    # Secrets are shown on the page that answers the request, and nowhere else: a message would
    # lie in a cookie or in the session until it is shown.

    def save_model(self, request: HttpRequest, obj: Subscription, form: Any, change: bool) -> None:
        if change:
            super().save_model(request, obj, form, change)
        else:
            obj._shown_once = obj.save_with_secret()  # type: ignore[attr-defined]

    def response_add(
        self, request: HttpRequest, obj: Subscription, post_url_continue: str | None = None
    ) -> HttpResponse:
        return self._show_secret(request, obj, obj._shown_once, "was added")  # type: ignore[attr-defined]

    def _show_secret(
        self, request: HttpRequest, subscription: Subscription, secret: str, what: str
    ) -> HttpResponse:
        response = TemplateResponse(
            request,
            "admin/subscriptions/subscription/secret.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "title": f"{subscription} {what}",
                "subscription": subscription,
                "secret": secret,
                "media": self.media,
            },
        )
        response["Cache-Control"] = "no-store"
        return response

    def get_urls(self) -> list[URLPattern]:
        return [
            path(
                "<path:object_id>/rotate-secret/",
                self.admin_site.admin_view(self.rotate_secret_view),
                name="subscriptions_subscription_rotate_secret",
            ),
            *super().get_urls(),
        ]

    def rotate_secret_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        subscription = self.get_object(request, object_id)
        if subscription is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined, no-any-return]
        self.require_change(request, subscription)
        with transaction.atomic():
            # Two rotations at the same moment are done one after the other.
            Subscription.objects.select_for_update().get(pk=subscription.pk)
            newest = subscription.secrets.values_list("pk", flat=True).order_by("-pk").first() or 0
            form = RotateSecretForm(
                request.POST if request.method == "POST" else None, newest=newest
            )
            if request.method == "POST" and form.is_valid():
                secret = subscription.rotate_secret(overlap=form.overlap())
                self.log_change(request, subscription, "Rotated the signing secret.")
                return self._show_secret(request, subscription, secret, "has a new signing secret")
        return TemplateResponse(
            request,
            "admin/subscriptions/subscription/rotate_secret.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "title": f"Rotate the signing secret of {subscription}",
                "subscription": subscription,
                "form": form,
                "media": self.media,
            },
        )

    def require_change(self, request: HttpRequest, subscription: Subscription) -> None:
        if not self.has_change_permission(request, subscription):
            raise PermissionDenied

    # Actions. Each changes what it fits and says what it left alone.

    @admin.action(description="Reset the circuit, send what was held", permissions=["change"])
    def reset_circuit(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> None:
        self.reset_tripped(request, list(chosen), discard_held=False)

    def reset_tripped(
        self, request: HttpRequest, chosen: Sequence[Subscription], *, discard_held: bool
    ) -> None:
        """Reset those of `chosen` that are tripped, and report it."""
        tripped = [subscription for subscription in chosen if subscription.state == "tripped"]
        changed = circuit.reset(
            [subscription.pk for subscription in tripped], discard_held=discard_held
        )
        held = "What was held is discarded." if discard_held else "What was held is being sent."
        self._report(
            request,
            chosen,
            changed,
            done=("%d circuit was reset.", "%d circuits were reset."),
            more=held,
            left=("%d was not tripped, and left as it is.", "%d were not tripped, and left alone."),
        )

    @admin.action(description="Pause", permissions=["change"])
    def pause(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> None:
        everything = list(chosen)
        changed = circuit.pause([subscription.pk for subscription in everything])
        self._report(
            request,
            everything,
            changed,
            done=("%d subscription was paused.", "%d subscriptions were paused."),
            more="What was pending is held until they are resumed.",
            left=("%d was paused already.", "%d were paused already."),
        )

    @admin.action(description="Resume", permissions=["change"])
    def resume(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> None:
        everything = list(chosen)
        changed = circuit.reset(
            [subscription.pk for subscription in everything if subscription.state == "paused"]
        )
        self._report(
            request,
            everything,
            changed,
            done=("%d subscription was resumed.", "%d subscriptions were resumed."),
            more="What was held is being sent.",
            left=("%d was not paused, and left as it is.", "%d were not paused, and left alone."),
        )

    def _report(
        self,
        request: HttpRequest,
        chosen: Sequence[Subscription],
        changed_ids: Sequence[Any],
        *,
        done: tuple[str, str],
        more: str,
        left: tuple[str, str],
    ) -> None:
        """Tell the operator, and the history of each subscription that changed."""
        changed = set(changed_ids)
        for subscription in chosen:
            if subscription.pk in changed:
                self.log_change(request, subscription, (done[0] % 1) + " " + more)
        if changed:
            count = len(changed)
            self.message_user(request, f"{ngettext(*done, count) % count} {more}", messages.SUCCESS)
        if alone := len(chosen) - len(changed):
            self.message_user(request, ngettext(*left, alone) % alone, messages.WARNING)
