"""Addresses of the server's own apps."""

from django.urls import path

from infra import upgrade_views, views

urlpatterns = [
    path("", views.app_list, name="infra"),
    path("upgrades/<int:pk>/", upgrade_views.page, name="infra-upgrade"),
    path("upgrades/<int:pk>/live", upgrade_views.live, name="infra-upgrade-live"),
]
