"""The roles of accounts, as groups that `migrate` makes. Nobody is put into one by a program.

`migrate` gives each role its permissions again, and takes none away: for other combinations, make a group of another name.
"""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models import Q

#: The apps whose permissions the roles have.
APPS = ("controlplane", "enrollment", "infra", "runs")
#: Each role with the permissions of an app that it has.
ROLES = {
    "viewer": Q(codename__startswith="view_"),
    "maintainer": Q(codename__startswith="view_") | Q(content_type__app_label="runs", codename="add_testrun"),
    "operator": Q(),
}


def grant(sender: AppConfig, **kwargs: Any) -> None:
    """Give the roles an app's permissions, after Django has made these (`post_migrate`)."""
    from django.contrib.auth.models import Group, Permission
    from django.db import connections

    if sender.name not in APPS or Group._meta.db_table not in connections[kwargs["using"]].introspection.table_names():
        return
    permissions = Permission.objects.using(kwargs["using"]).filter(content_type__app_label=sender.label)
    for name, which in ROLES.items():
        group, _ = Group.objects.using(kwargs["using"]).get_or_create(name=name)
        group.permissions.add(*permissions.filter(which))
