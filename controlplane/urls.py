"""URL configuration."""

from django.contrib import admin
from django.contrib.auth.views import LogoutView
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from controlplane import api, pages

# Here rather than when Django starts: most commands show no page, and start in half the time without it.
admin.autodiscover()
urlpatterns = [
    path("", pages.start, name="start"),
    path("login/", pages.LoginPage.as_view(), name="login"),
    path("logout/", LogoutView.as_view(next_page="start"), name="logout"),
    path("healthz", pages.health, name="health"),
    path("docs/", pages.docs_index, name="docs-index"),
    path("docs/<path:name>", pages.docs_page, name="docs"),
    path("glossary/", pages.docs_page, {"name": "glossary"}, name="glossary"),
    path("api/", include(api.urls())),
    path("runs/", include("runs.urls")),
    path("badge/", include("runs.badge_urls")),
    # What browsers ask for where a page names none: JSON, texts, feeds.
    path("favicon.ico", RedirectView.as_view(url=static("controlplane/favicon.svg"))),
    path("robots.txt", pages.robots, name="robots"),
    path("recipes/", include("runs.recipe_urls")),
    path("", include("enrollment.urls")),
    path("deferred/", include("runs.deferred.urls")),
    path("infra/", include("infra.urls")),
    path("admin/", admin.site.urls),
]
