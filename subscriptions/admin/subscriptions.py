"""Subscriptions in Django's admin: who is subscribed, how it goes, and what an operator can do.

`deliveries.admin.history` adds what is known of deliveries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import F, Max, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import TextFilter

from subscriptions.admin import display
from subscriptions.admin.careful import CarefulAdmin
from subscriptions.admin.display import ago, short, state_chip
from subscriptions.admin.forms import RotateSecretForm, SubscriptionForm
from subscriptions.admin.tenants import ChosenTenant, tenant_link
from subscriptions.conf import conf
from subscriptions.models import SigningSecret, Subscription
from subscriptions.times import exact
from subscriptions.topics.rules import InvalidTopic, validate_topic

# Their secrets are all shown on one page, to be copied from there.
MAX_ROTATED = 100


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


class NeverDelivered(admin.SimpleListFilter):
    title = "delivered"
    parameter_name = "delivered"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("never", "Never")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(last_success_at=None) if self.value() == "never" else queryset


class HostFilter(TextFilter):  # type: ignore[misc]
    title = parameter_name = "host"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = (self.value() or "").strip()
        if not value:
            return queryset
        try:
            return queryset.at_host(value)  # type: ignore[attr-defined, no-any-return]
        except ValueError:
            return queryset.none()


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
        "state_and_why",
        "receiver",
        "whose",
    )
    list_filter: ClassVar[tuple[Any, ...]] = (StateFilter, NeverDelivered, HostFilter, TenantFilter)
    list_filter_submit = True
    list_per_page = 50
    list_before_template = "admin/subscriptions/subscription/banners.html"
    show_facets = admin.ShowFacets.NEVER
    search_fields = ("name", "url", "tenant")
    search_help_text = "Name, URL, tenant, or a topic: whom it would reach"
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
    actions: tuple[str, ...] = ("rotate_secret",)
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
            (None, {"fields": [*receiver, "enabled"]}),
            ("Sending", {"fields": sending}),
            ("How it goes", {"fields": ["state_now", *self.how_it_goes], "classes": ["collapse"]}),
            ("Secrets", {"fields": ["signing_secrets"]}),
            ("Record", {"fields": ["id", "created_at", "updated_at"], "classes": ["collapse"]}),
        ]

    # Columns and read-only fields.

    @admin.display(description="state")
    def state_now(self, subscription: Subscription) -> SafeString:
        return state_chip(subscription)

    @admin.display(description="state")
    def state_and_why(self, subscription: Subscription) -> SafeString:
        why = "" if subscription.state == "paused" else short(subscription.last_error, 70)
        if why in ("", "–"):
            return self.state_now(subscription)
        return format_html(
            '<div>{}<div class="why">{}</div></div>', self.state_now(subscription), why
        )

    @admin.display(description="tenant")
    def whose(self, subscription: Subscription) -> SafeString | str:
        if subscription.all_tenants:
            return "all tenants"
        return tenant_link(subscription.tenant, "subscriptions_subscription_changelist")

    @admin.display(description="receiver, patterns")
    def receiver(self, subscription: Subscription) -> SafeString:
        return format_html(
            '<div>{}<div class="why">{}</div></div>',
            display.receiver(subscription.url),
            display.patterns(subscription),
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
        return exact(subscription.next_probe_at)

    @admin.display(description="signing secrets")
    def signing_secrets(self, subscription: Subscription) -> SafeString | str:
        # Looked up once: unfold asks for a field several times.
        known = vars(subscription)
        if "live_secrets" not in known:
            known["live_secrets"] = list(subscription.secrets.live())
        secrets: list[SigningSecret] = known["live_secrets"]
        if not secrets:
            return "None: nothing can be sent. Rotate the secret to make one."
        return format_html_join(
            "",
            "<div>Made {}{}</div>",
            (
                (ago(secret.created_at), f", ends {exact(secret.expires_at)}"
                 if secret.expires_at else "")
                for secret in secrets
            ),
        )  # fmt: skip

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Subscription], search_term: str
    ) -> tuple[QuerySet[Subscription], bool]:
        found, several = super().get_search_results(request, queryset, search_term)
        topic = search_term.strip()
        if not topic:
            return found, several
        try:
            validate_topic(topic)
        except InvalidTopic:
            return found, several
        reached = queryset.reached_by(topic)  # type: ignore[attr-defined]
        return found | reached, several

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
        secret: str = obj._shown_once  # type: ignore[attr-defined]
        return self._show_secrets(request, f"{obj} was added", [(obj, secret)])

    def _show_secrets(
        self, request: HttpRequest, title: str, secrets: Sequence[tuple[Subscription, str]]
    ) -> HttpResponse:
        response = self.page(
            request, "admin/subscriptions/subscription/secrets.html", title, secrets=secrets
        )
        response["Cache-Control"] = "no-store"
        return response

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        may_rotate = self.may(request, "rotate")
        return super().change_view(
            request, object_id, form_url, {**(extra_context or {}), "may_rotate": may_rotate}
        )

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The audit's: Django's own history knows of its forms alone."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        address = reverse("admin:subscriptions_auditentry_changelist")
        return redirect(f"{address}?{urlencode({'subscription': object_id})}")

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
        self.require(request, "rotate")
        chosen = Subscription.objects.filter(pk=subscription.pk)
        return self._rotate(
            request,
            chosen,
            reverse("admin:subscriptions_subscription_change", args=[subscription.pk]),
        )

    def has_rotate_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "rotate")

    @admin.action(description="Rotate the secret", permissions=["rotate"])
    def rotate_secret(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> HttpResponse:
        return self._rotate(request, chosen, "", action="rotate_secret")

    def _rotate(
        self, request: HttpRequest, chosen: QuerySet[Subscription], back: str, action: str = ""
    ) -> HttpResponse:
        """Ask, or do what was confirmed: all of them, or none."""
        back = back or request.get_full_path()  # the list, filtered as it was
        confirmed = request.method == "POST" and (not action or "confirmed" in request.POST)
        ids = list(chosen.order_by("pk").values_list("pk", flat=True)[: MAX_ROTATED + 1])
        if len(ids) > MAX_ROTATED:
            refusal = f"Choose at most {MAX_ROTATED} subscriptions at once; nothing was done."
            self.message_user(request, refusal, messages.ERROR)
            return redirect(back)
        with transaction.atomic():
            # Two rotations at the same moment are done one after the other.
            found = list(Subscription.objects.select_for_update().filter(pk__in=ids).order_by("pk"))
            if not found:
                return self.gone(request)
            kept = SigningSecret.objects.filter(subscription__in=found)
            # Every rotation of any of them makes a newer one.
            newest = kept.aggregate(newest=Max("pk"))["newest"] or 0
            form = RotateSecretForm(
                request.POST if confirmed else None, newest=newest, many=len(found) > 1
            )
            if confirmed and form.is_valid():
                secrets = []
                for one in found:
                    try:
                        secret = one.rotate_secret(overlap=form.overlap())
                    except ValidationError as error:
                        transaction.set_rollback(True)
                        refusal = f"{one}: {' '.join(error.messages)} Nothing was done."
                        self.message_user(request, refusal, messages.ERROR)
                        return redirect(back)
                    secrets.append((one, secret))
                    self.log_change(request, one, "Rotated the signing secret.")
                title = (
                    f"{found[0]} has a new signing secret"
                    if len(found) == 1
                    else f"{len(found)} subscriptions have new signing secrets"
                )
                return self._show_secrets(request, title, secrets)
            valid = Counter(kept.live().values_list("subscription", flat=True))
        return self.page(
            request,
            "admin/subscriptions/subscription/rotate_secret.html",
            f"Rotate the signing secret of {found[0]}" if not action else "Rotate signing secrets",
            rows=[(one, valid[one.pk]) for one in found],
            valid=valid.total(),
            form=form,
            action=action,
            action_checkbox_name=ACTION_CHECKBOX_NAME,
            back=back,
        )

    # Each act has a permission of its own, whatever else somebody may change.

    def may(self, request: HttpRequest, act: str) -> bool:
        """`act`: reset, pause, test, rotate or replay."""
        return bool(request.user.has_perm(f"subscriptions.{act}_subscription"))

    def require(self, request: HttpRequest, act: str) -> None:
        if not self.may(request, act):
            raise PermissionDenied

    def get_readonly_fields(
        self, request: HttpRequest, obj: Subscription | None = None
    ) -> tuple[str, ...]:
        fields = tuple(super().get_readonly_fields(request, obj))
        if obj and not (self.may(request, "reset") and self.may(request, "pause")):
            fields += ("enabled",)
        return fields
