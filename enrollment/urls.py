"""Addresses of webhooks: the receiver, and the page with the steps by hand."""

from django.urls import path, re_path

from enrollment import hook_views

urlpatterns = [
    # With and without the slash at the end: a redirect would lose the body.
    re_path(r"^hooks/(?P<forge>[^/]+)/?$", hook_views.receive, name="receive_delivery"),
    path("repositories/<int:pk>/webhook/", hook_views.by_hand, name="webhook_by_hand"),
]
