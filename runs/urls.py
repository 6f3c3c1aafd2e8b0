"""URLs of runs."""

from django.urls import path, re_path

from runs import deployments, views

urlpatterns = [
    path("", views.run_list, name="runs"),
    path("deployments/", deployments.page, name="deployments"),
    path("deployments/<uuid:run_id>/", deployments.one, name="deployment"),
    path("tests/<int:repository_id>/", views.test_history, name="test-history"),
    re_path(r"^executors/(?P<name>[^/]+)/hook/?$", views.executor_hook, name="executor_hook"),
    path("<uuid:run_id>/", views.run, name="run"),
    path("<uuid:run_id>/do/<slug:name>/", views.act, name="run-act"),
    path("<uuid:run_id>/live/", views.live, name="run-live"),
    path("<uuid:run_id>/log/", views.log, name="run-log"),
    path("<uuid:run_id>/files/<str:name>", views.artefact, name="run-artefact"),
    path("<uuid:run_id>/files.zip", views.archive, name="run-files"),
]
