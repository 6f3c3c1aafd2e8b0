"""URLs of badges, below `badge/`."""

from django.urls import path

from runs import shared_pages

urlpatterns = [path("<str:owner>/<str:name>.svg", shared_pages.badge, name="badge")]
