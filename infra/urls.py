"""Addresses of the server's own apps."""

from django.urls import path

from infra.web import upgrade_page, views

urlpatterns = [
    path("", views.app_list, name="infra"),
    path("file/", views.file_page, name="infra-file"),
    path("infra.yml", views.export, name="infra-export"),
    path("night/", views.maintenance_run, name="infra-night"),
    path("do/<slug:name>/", views.do, name="infra-do"),
    path("do/<slug:name>/<int:pk>/", views.do, name="infra-do"),
    path("upgrades/<int:pk>/", upgrade_page.page, name="infra-upgrade"),
    path("upgrades/<int:pk>/live", upgrade_page.live, name="infra-upgrade-live"),
]
