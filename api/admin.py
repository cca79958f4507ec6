"""Keys of the API in the admin: made, shown once, revoked."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from django.utils.translation import ngettext
from django.views.decorators.debug import sensitive_variables
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from api import keys
from api.models import SCOPES, ApiKey
from subscriptions.admin.careful import CarefulAdmin
from subscriptions.admin.display import ago, chip
from subscriptions.times import exact


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg]
    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {what}") for scope, what in SCOPES.items()],
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="What the key may be used for.",
    )

    class Meta:
        model = ApiKey
        fields: ClassVar = ["name", "scopes", "tenant", "all_tenants", "expires_at"]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if cleaned.get("all_tenants") and cleaned.get("tenant"):
            self.add_error("tenant", "A key is bound to one tenant, or to none: leave one out.")
        return cleaned


@admin.register(ApiKey)
class ApiKeyAdmin(CarefulAdmin):
    """Nothing of a key changes but its end: a key with another scope is another key."""

    form = ApiKeyForm
    list_display = ("name", "prefix", "state_now", "bound_to", "what", "used")
    search_fields = ("name", "prefix")
    search_help_text = "Name, or the beginning of the key"
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ("name",)
    actions = ("revoke",)

    class Media:
        css: ClassVar = {"all": ["subscriptions/admin.css"]}

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        if obj is None:
            return [(None, {"fields": ApiKeyForm.Meta.fields})]
        return [(None, {"fields": self.get_readonly_fields(request, obj)})]

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        if obj is None:
            return ()
        return (
            *("name", "prefix", "state_now", "what", "bound_to"),
            *("created", "expires", "used", "revoked"),
        )

    @admin.display(description="state")
    def state_now(self, key: ApiKey) -> SafeString:
        return chip(key.state.capitalize(), "good" if key.state == "live" else "idle")

    @admin.display(description="scopes")
    def what(self, key: ApiKey) -> str:
        return ", ".join(key.scopes)

    @admin.display(description="tenant")
    def bound_to(self, key: ApiKey) -> str:
        return key.bound_to

    @admin.display(description="created at")
    def created(self, key: ApiKey) -> str:
        return exact(key.created_at)

    @admin.display(description="expires at")
    def expires(self, key: ApiKey) -> str:
        return exact(key.expires_at) if key.expires_at else "never"

    @admin.display(description="revoked at")
    def revoked(self, key: ApiKey) -> str:
        return exact(key.revoked_at) if key.revoked_at else "–"

    @admin.display(description="last used")
    def used(self, key: ApiKey) -> SafeString | str:
        return ago(key.last_used_at)

    # The key is on the page that answers the request, and nowhere else: a message would lie in a
    # cookie or in the session until it is shown.

    @sensitive_variables()
    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if not change:
            obj._shown_once = keys.give_secret(obj)  # type: ignore[attr-defined]
            super().save_model(request, obj, form, change)

    def response_add(
        self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None
    ) -> HttpResponse:
        response = self.page(
            request,
            "admin/api/apikey/key.html",
            f"The key of {obj.name}",
            api_key=obj,
            text=obj._shown_once,  # type: ignore[attr-defined]
        )
        response["Cache-Control"] = "no-store"
        return response

    @admin.action(description="Revoke", permissions=["change"])
    def revoke(self, request: HttpRequest, chosen: QuerySet[ApiKey]) -> None:
        live = list(chosen.filter(revoked_at=None))
        count = keys.revoke(ApiKey.objects.filter(pk__in=[key.pk for key in live]))
        for key in live:
            self.log_change(request, key, "Revoked.")
        done = ngettext("%d key was revoked.", "%d keys were revoked.", count) % count
        self.message_user(request, done, messages.SUCCESS if count else messages.WARNING)
