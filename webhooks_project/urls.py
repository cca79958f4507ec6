from django.contrib import admin
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.generic import RedirectView

from api.api import api


def healthz(request: HttpRequest) -> HttpResponse:
    """200 while this process answers and the database does."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok\n", content_type="text/plain")


admin.site.site_header = "Webhooks"
admin.site.site_title = "Webhooks"
admin.site.index_title = "Subscriptions and deliveries"

urlpatterns = [
    path("api/", api.urls),
    path("healthz", healthz),
    path("admin/", admin.site.urls),
    path("", RedirectView.as_view(pattern_name="admin:index")),
]
