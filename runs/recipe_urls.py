"""URLs of recipes and their pull requests."""

from django.urls import path

from runs import recipe_pages

urlpatterns = [
    path("<int:repository_id>/", recipe_pages.recipe, name="recipe"),
    path("<int:repository_id>/pulls/<int:number>/", recipe_pages.pull_request, name="pull-request"),
]
