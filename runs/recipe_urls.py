"""URLs of recipes and their pull requests, below `recipes/`."""

from django.urls import path

from runs import recipe_pages, shared_pages

urlpatterns = [
    path("<int:repository_id>/feed/", shared_pages.RecipeFeed(), name="recipe-feed"),
    path("runs/<uuid:run_id>.png", shared_pages.card, name="run-card"),
    path("<int:repository_id>/", recipe_pages.recipe, name="recipe"),
    path("<int:repository_id>/pulls/<int:number>/", recipe_pages.pull_request, name="pull-request"),
]
