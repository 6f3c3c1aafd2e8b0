"""Django settings, all of them from `controlplane.config`."""

from __future__ import annotations

from datetime import timedelta
from importlib.metadata import version
from logging import WARNING, LogRecord
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.templatetags.static import static

from controlplane import config, sidebar

BASE_DIR: Path = config.BASE_DIR
CC_CI = config.load()
VERSION = version("cc-ci")

STATIC_ROOT = CC_CI.data_dir / "static"
try:
    CC_CI.data_dir.mkdir(parents=True, exist_ok=True)
    STATIC_ROOT.mkdir(exist_ok=True)
except OSError as error:
    raise config.ConfigurationError(f"CC_CI_DATA_DIR: cannot create {error.filename}: {error.strerror}") from None

DEBUG = CC_CI.debug
ALLOWED_HOSTS = CC_CI.hosts
CSRF_TRUSTED_ORIGINS = [f"{urlsplit(CC_CI.base_url).scheme}://{urlsplit(CC_CI.base_url).netloc}"]
if urlsplit(CC_CI.base_url).scheme == "https":
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
# Only present if one of CC_CI_PROXIES set it: `controlplane.middleware.believe_proxies` runs first.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"


def _secret_key() -> str:
    if CC_CI.secret_key:
        return CC_CI.secret_key
    # `controlplane.secrets` reads settings lazily, so it may be imported from here.
    from django.core.management.utils import get_random_secret_key

    from controlplane.secrets import DJANGO_KEY_FILE, read_or_make

    return read_or_make(CC_CI.data_dir / DJANGO_KEY_FILE, get_random_secret_key).strip()


SECRET_KEY = _secret_key()

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin.apps.SimpleAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django_q",
    "axes",
    "controlplane.apps.ControlplaneConfig",
    "enrollment.apps.EnrollmentConfig",
    "infra.apps.InfraConfig",
    "runs.apps.RunsConfig",
]
MIDDLEWARE = [
    "controlplane.middleware.believe_proxies",
    "controlplane.middleware.strict_transport",
    "controlplane.middleware.NoNul",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "controlplane.middleware.content_security_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "controlplane.middleware.LoginUnlessPublic",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "controlplane.urls"
WSGI_APPLICATION = "controlplane.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [Path(__file__).parent / "templates"],  # ours before the theme's, whose app has to come first
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES: dict[str, dict[str, Any]] = {
    "default": config.parse_database_url(CC_CI.database_url, config.PROJECT)
    if CC_CI.database_url
    else {"ENGINE": "django.db.backends.sqlite3", "NAME": str(CC_CI.data_dir / "cc-ci.sqlite3")}
}
if CC_CI.is_sqlite:
    DATABASES["default"]["OPTIONS"] = {
        # Writers wait for each other at BEGIN instead of failing midway.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=20000;",
    }
else:
    # Check a worker's connection before each use, so that a PostgreSQL restart costs one task, not a worker.
    DATABASES["default"].update({"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True})
    DATABASES["default"]["OPTIONS"].setdefault("connect_timeout", "5")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
    "enrollment.forge_login.backend.ForgeBackend",
]
# See `controlplane.logins`. A successful login resets nothing: else anybody with an account could guess others' forever.
AXES_FAILURE_LIMIT = 8
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = "controlplane.logins.parameters"
AXES_CLIENT_IP_CALLABLE = "controlplane.logins.client_address"
AXES_USERNAME_CALLABLE = "controlplane.logins.name"
AXES_LOCKOUT_CALLABLE = "controlplane.logins.locked_out"
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "start"
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
FORMAT_MODULE_PATH = "controlplane.formats"

STATIC_URL = "/static/"
# Whitenoise serves directly from the apps' folders, so collectstatic is not needed.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG

Q_CLUSTER = {
    # Each host has its own queue: work on a run belongs where its folder and its processes are.
    "name": f"cc-ci-{CC_CI.host}",
    "orm": "default",
    "workers": CC_CI.workers,
    "timeout": CC_CI.queue_timeout,
    "retry": CC_CI.queue_retry,
    "max_attempts": 3,
    "ack_failures": True,
    "catch_up": False,
    "scheduler": False,  # ours is `controlplane.schedules`
    "save_limit": 100,
    "poll": 0.2,
    "bulk": 1,
    "queue_limit": 20,
    "label": "Queue",
    "guard_cycle": 0.5,
}


def _without_traceback(record: LogRecord) -> bool:
    """Of a request that Django refuses, such as one for a foreign host, one line is enough."""
    record.exc_info = record.exc_text = None
    record.levelno, record.levelname = WARNING, "WARNING"
    return True


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname:<7} {name}: {message}", "style": "{"}},
    "filters": {"one_line": {"()": "django.utils.log.CallbackFilter", "callback": _without_traceback}},
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "line"},
        "one_line": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["one_line"]},
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        "axes": {"level": "ERROR"},  # `controlplane.logins` logs the same in plain text
        "django-q": {"level": "WARNING"},
        "django.security": {"handlers": ["one_line"], "propagate": False},  # what strangers send is no fault of ours
        "django.request": {"level": "ERROR"},
        "urllib3": {"level": "ERROR"},
        "waitress.queue": {"level": "ERROR"},
    },
}

UNFOLD = {
    "SITE_TITLE": "cc-ci",
    "SITE_HEADER": "cc-ci",
    "SITE_SUBHEADER": "CI for Co-op Cloud recipes",
    "SITE_SYMBOL": "ecg_heart",
    "SITE_URL": "/",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("controlplane/favicon.svg")}],
    "STYLES": [lambda request: static("controlplane/admin.css")],
    "DASHBOARD_CALLBACK": "controlplane.operator_page.context",
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": True,
    # The blue of the other pages.
    "COLORS": {
        "primary": {
            "50": "oklch(97.3% .013 258)",
            "100": "oklch(94% .03 258)",
            "200": "oklch(88.5% .06 258)",
            "300": "oklch(80.5% .105 257)",
            "400": "oklch(71% .15 258)",
            "500": "oklch(61.5% .18 259)",
            "600": "oklch(53% .18 260)",
            "700": "oklch(46.5% .16 260)",
            "800": "oklch(40% .13 260)",
            "900": "oklch(34.5% .1 260)",
            "950": "oklch(26% .075 260)",
        }
    },
    "SIDEBAR": {"show_search": True, "show_all_applications": False, "navigation": sidebar.navigation()},
}
