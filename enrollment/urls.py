"""URLs of webhooks: the receiver, and the page with the manual steps."""

from django.urls import path, re_path

from enrollment.webhooks import views

urlpatterns = [
    # With and without the slash at the end: a redirect would lose the body.
    re_path(r"^hooks/(?P<forge>[^/]+)/?$", views.receive, name="receive_delivery"),
    path("repositories/<int:pk>/webhook/", views.by_hand, name="webhook_by_hand"),
]
