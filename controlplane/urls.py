"""All addresses."""

from django.contrib import admin
from django.urls import include, path

from controlplane import pages

urlpatterns = [
    path("", pages.start, name="start"),
    path("healthz", pages.health, name="health"),
    path("runs/", include("runs.urls")),
    path("", include("enrollment.urls")),
    path("deferred/", include("runs.deferred_urls")),
    path("infra/", include("infra.urls")),
    path("admin/", admin.site.urls),
]
