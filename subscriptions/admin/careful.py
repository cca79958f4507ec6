"""What the admin answers to ids that cannot be ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.views.main import ERROR_FLAG
from django.core.exceptions import ValidationError
from django.db import DatabaseError, OperationalError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.template.response import TemplateResponse

if TYPE_CHECKING:
    # unfold's own, which has no types, is one of these.
    from django.contrib.admin import ModelAdmin
else:
    from unfold.admin import ModelAdmin


class CarefulAdmin(ModelAdmin):  # type: ignore[type-arg]  # not at run time
    """An id that no row can have is one that no row has: never an error of the server."""

    def page(
        self, request: HttpRequest, template: str, title: str, **context: Any
    ) -> TemplateResponse:
        """A page of the admin that is none of Django's own."""
        return TemplateResponse(
            request,
            template,
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "title": title,
                "media": self.media,
                **context,
            },
        )

    def gone(self, request: HttpRequest) -> HttpResponse:
        """To the list: what an act was for was deleted between two looks at it."""
        self.message_user(request, "Nothing was done: it was just deleted.", messages.WARNING)
        return redirect(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        # PostgreSQL refuses to look for NUL.
        if "\0" in object_id:
            return None
        return super().get_object(request, object_id, from_field)

    def changeform_view(self, request: HttpRequest, *more: Any, **named: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, *more, **named)
        except OperationalError:
            raise
        except DatabaseError:
            # Somebody took the name, or deleted the row, between the look at it and the writing.
            # Nothing is written; the form is looked at again, and says what is wrong by now.
            return super().changeform_view(request, *more, **named)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if any("\0" in value for values in request.GET.lists() for value in values[1]):
            # As Django answers what it cannot look for.
            return HttpResponseRedirect(f"{request.path}?{ERROR_FLAG}=1")
        return super().changelist_view(request, extra_context)

    def response_action(
        self, request: HttpRequest, queryset: QuerySet[Any], *more: Any, **named: Any
    ) -> HttpResponse | None:
        try:
            return super().response_action(request, queryset, *more, **named)
        except (ValueError, ValidationError):
            ids = request.POST.getlist(ACTION_CHECKBOX_NAME)
            if all(_is_key(self.opts.pk, key) for key in ids):
                raise
        self.message_user(request, "Nothing was done: a chosen id is no id.", messages.ERROR)
        return HttpResponseRedirect(request.get_full_path())


def _is_key(field: Any, text: str) -> bool:
    try:
        field.to_python(text)
    except ValidationError:
        return False
    return "\0" not in text
