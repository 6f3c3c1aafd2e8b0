"""Tests that were put off, as a `DEFERRED.md` tells of them, and what closed them. See docs/deferred.md."""

from __future__ import annotations

from django.db import models

from enrollment.models import Repository


class DeferredItem(models.Model):
    """One entry of one `DEFERRED.md`: never deleted, and closed once, by one conditional UPDATE (`runs.deferred`).

    `ticked` is what the box in the file said when it was last read. A row may be closed while the box is still empty: then the
    proof was accepted, and the change of the file (a pull request, a patch) is on its way.
    """

    class State(models.TextChoices):
        OPEN = "open", "open"
        CLOSED = "closed", "closed"

    class RecipeBy(models.TextChoices):
        NOBODY = "", "not known"
        SLUG = "slug", "guess: its slug begins so"
        WHAT = "what", "guess: it is named in What"
        HAND = "hand", "decided by hand"

    source = models.CharField(max_length=700, help_text="The file: a repository's address and a path in it, or a path here.")
    source_repository = models.ForeignKey(
        Repository, null=True, blank=True, on_delete=models.SET_NULL, related_name="deferred_entries"
    )
    source_path = models.CharField(max_length=500, blank=True, help_text="The file's path in that repository.")
    slug = models.CharField(max_length=200)
    filed_on = models.DateField()
    line = models.PositiveIntegerField(help_text="Where its heading stood when the file was last read.")
    what = models.TextField(help_text="Markdown.")
    filed_by = models.TextField(blank=True)
    why = models.TextField("reason", blank=True, help_text="Why it was put off.")
    trigger = models.TextField("re-entry trigger", blank=True)
    linked = models.TextField(blank=True)

    recipe = models.ForeignKey(Repository, null=True, blank=True, on_delete=models.SET_NULL, related_name="deferred_items")
    recipe_by = models.CharField(max_length=10, choices=RecipeBy.choices, default=RecipeBy.NOBODY, blank=True)

    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN, db_index=True)
    ticked = models.BooleanField(default=False, help_text="Whether the box in the file was ticked when it was last read.")
    closed_at = models.DateTimeField(null=True, blank=True)
    closed_commit = models.CharField(max_length=64, blank=True, help_text="The commit that ported the test.")
    closed_test = models.CharField(max_length=500, blank=True, help_text="The test's path in the recipe.")
    proof = models.ForeignKey(
        "runs.TestRun",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="closes",
        help_text="The run that passed it.",
    )
    unproven = models.BooleanField(default=False, help_text="Closed without a run that passed the test.")
    pull_url = models.CharField(max_length=500, blank=True, help_text="The pull request that ticks the box.")

    vanished_at = models.DateTimeField(null=True, blank=True, help_text="Since when the entry is no longer in its file.")
    synced_at = models.DateTimeField(null=True, blank=True, help_text="When a reading of the file last changed this row.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-filed_on", "slug", "id"]
        constraints = [models.UniqueConstraint(fields=["source", "filed_on", "slug"], name="one_row_per_deferred_entry")]

    def __str__(self) -> str:
        return self.slug

    @property
    def recipe_name(self) -> str:
        return self.recipe.name if self.recipe else ""

    @property
    def guessed(self) -> bool:
        """Whether the recipe was found by cc-ci and not said by a person."""
        return self.recipe_by in (self.RecipeBy.SLUG, self.RecipeBy.WHAT)

    @property
    def private(self) -> bool:
        """Whether only those who may see private repositories may see this. What came from a repository that is no longer
        watched stays hidden: nobody knows any more whether it was public."""
        lost = bool(self.source_path) and self.source_repository is None
        return lost or any(row.private for row in (self.recipe, self.source_repository) if row)

    @property
    def file_name(self) -> str:
        """The file as it may be shown to anybody: of a file of this machine no folders."""
        if self.source_repository:
            return f"{self.source_repository.full_name}:{self.source_path}"
        return self.source.rpartition("/")[2]
