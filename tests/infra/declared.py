"""Texts of infra.yml, and strategies that make declarations."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

#: A file as a person writes it: with comments, quotes, an anchor and a flow mapping.
TEXT = """\
# Our server. Ask ops before you change an owner.
git: {commit: true, push: false}

stores:
  local:
    folder: /srv/snapshots      # on the big disk
  far:
    restic: sftp:backup@host.example.org:/cc-ci
    password: file:secrets/restic

apps:
  traefik:
    recipe: traefik
    source: https://git.example.org/recipes/traefik.git
    domain: traefik.example.org
    owner: reconciled
    version: 3.7.0+v3.4.1       # pinned by cc-ci
    policy: &careful
      auto: patch
      cooldown: 3d
    window: Mon-Fri 02:00-05:00 Europe/Berlin
    health:
      - http: /ping
        status: 200
      - tcp: 443
    snapshots: none

  "keycloak":
    recipe: keycloak
    source: git@git.example.org:recipes/keycloak.git
    domain: id.example.org
    owner: reconciled
    version: '10.7.1+26.6.2'
    after: traefik
    policy: *careful
    env:
      EXTRA: "1"
      SECRET_DB_PASSWORD_VERSION: v1
      SMTP_PASSWORD: env:SMTP_PASSWORD
    secrets:
      admin_password: file:secrets/keycloak-admin
    health:
      - command: [pg_isready, -q]
        service: db
    snapshots: {store: local, keep: 5}

  drone: {recipe: drone, source: /srv/recipes/drone, domain: ci.example.org, owner: maintainers, after: [traefik, keycloak]}
"""

_names = st.from_regex(r"\A[a-z][a-z0-9-]{0,8}\Z")
_words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
_reference = st.one_of(st.from_regex(r"\Aenv:[A-Z][A-Z_]{0,6}\Z"), st.from_regex(r"\Afile:[a-z/]{1,9}\Z"))
_versions = st.builds(
    "{}.{}.{}+{}".format, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.sampled_from(["1", "v2.11", "26.6.2-rc1"])
)
_holds = st.sampled_from(["hold", "allow"])
_windows = st.sampled_from(["", "02:00-05:00", "Mon-Fri 02:00-05:00 Europe/Berlin", "Sat,Sun 22:00-04:00 America/New_York"])


def _some(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


_checks = st.one_of(
    _some({"http": st.sampled_from(["/", "/ping?x=1"])}, {"status": st.lists(st.integers(100, 599), max_size=2), "body": _words}),
    _some({"tcp": st.one_of(st.integers(1, 65535), st.just("db.example.org:5432"))}, {"seconds": st.integers(1, 60)}),
    _some({"command": st.lists(_words, min_size=1, max_size=3)}, {"service": st.just("db")}),
)


def _policy() -> st.SearchStrategy[dict[str, Any]]:
    durations = st.sampled_from(["0s", "90m", "2d", "1w"])
    optional = {
        "auto": st.sampled_from(["none", "patch", "minor"]),
        "right_major": _holds,
        "missing_notes": _holds,
        "manual_patterns": st.lists(st.sampled_from([r"\bbreaking\b", "by hand", "^!"]), max_size=2),
        "harmless_patterns": st.lists(st.sampled_from([r"\bbreaking\b", "by hand", "^!"]), max_size=2),
        "cooldown": durations,
        "soak": durations,
        "need_test_run": st.booleans(),
        "after_failure": st.sampled_from(["stop", "go_on"]),
    }
    return _some({}, optional)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """What a file may say, as plain values: apps that come after earlier ones only, each with a domain of its own."""
    stores = draw(
        st.dictionaries(
            _names,
            st.one_of(
                st.fixed_dictionaries({"folder": st.just("/srv/snapshots")}),
                st.fixed_dictionaries({"restic": st.just("s3:https://s3.example.org/b"), "password": _reference}),
            ),
            min_size=1,
            max_size=2,
        )
    )
    names = draw(st.lists(_names, max_size=4, unique=True))
    apps: dict[str, Any] = {}
    for name in names:
        owner = draw(st.sampled_from(["reconciled", "maintainers"]))
        app = {
            "recipe": draw(_names),
            "source": draw(st.sampled_from(["https://git.example.org/a.git", "/srv/a", "git@example.org:a.git"])),
            "domain": f"{name}0.example.org",
            "owner": owner,
            "after": draw(st.lists(st.sampled_from(list(apps)), unique=True)) if apps else [],
            "policy": draw(_policy()),
            "window": draw(_windows),
            "health": draw(st.lists(_checks, max_size=2)),
            "env": draw(st.dictionaries(st.sampled_from(["A", "TITLE", "LOG_LEVEL"]), _words, max_size=2)),
            "secrets": draw(st.dictionaries(_names, _reference, max_size=2)),
        }
        if owner == "reconciled":
            app["version"] = draw(_versions)
            app["snapshots"] = draw(
                st.one_of(st.just("none"), _some({"store": st.sampled_from(list(stores))}, {"keep": st.integers(1, 9)}))
            )
        for key, strategy in {
            "credential": _reference,
            "server": st.sampled_from(["default", "far.example.org"]),
            "stack": st.just(f"stack-{name}"),
            "deployer": st.just("swarm"),
        }.items():
            if draw(st.booleans()):
                app[key] = draw(strategy)
        apps[name] = app
    document: dict[str, Any] = {"stores": stores, "apps": apps}
    if draw(st.booleans()):
        document["git"] = {"commit": draw(st.booleans()), "push": draw(st.booleans())}
    return document
