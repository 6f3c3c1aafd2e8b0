"""URLs of webhooks (the receiver, and the page with the manual steps), and of logging in with a forge."""

from django.urls import path, re_path

from enrollment.forge_login import views as forge_login
from enrollment.webhooks import views

urlpatterns = [
    # With and without the slash at the end: a redirect would lose the body.
    re_path(r"^hooks/(?P<forge>[^/]+)/?$", views.receive, name="receive_delivery"),
    path("login/forge/<int:pk>/", forge_login.begin, name="forge-login"),
    path("login/forge/<int:pk>/back/", forge_login.back, name="forge-login-back"),
    path("repositories/<int:pk>/webhook/", views.by_hand, name="webhook_by_hand"),
]
