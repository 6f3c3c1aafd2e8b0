"""URL of the page of deferred tests."""

from django.urls import path

from runs.deferred import views

urlpatterns = [path("", views.deferred_list, name="deferred")]
