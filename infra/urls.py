"""Addresses of the server's own apps."""

from django.urls import path

from infra import views

urlpatterns = [path("", views.app_list, name="infra")]
