from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from api import problems
from api.api import api
from deliveries.admin.dashboard import fragment
from deliveries.views import healthz, metrics, readyz

urlpatterns = [
    path("api/problems", problems.page, name="api-problems"),
    path("api/", api.urls),
    path("healthz", healthz),
    path("metrics", metrics),
    path("readyz", readyz),
    path("admin/dashboard/", admin.site.admin_view(fragment), name="admin-dashboard"),
    path("admin/", admin.site.urls),
    path("", RedirectView.as_view(pattern_name="admin:index")),
]
