"""The address of the page of deferred tests."""

from django.urls import path

from runs import deferred_views

urlpatterns = [path("", deferred_views.deferred_list, name="deferred")]
