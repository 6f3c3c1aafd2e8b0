"""cc-ci's settings from the environment and `.env`: name, type, default and validation of each, in one table.

An invalid value prevents the start and is reported with the variable's name and the reason. `cc-ci configuration` generates
the table in `docs/configuration.md` from this one, and a test keeps the two in sync.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from controlplane.time_window import Window

BASE_DIR = Path(__file__).resolve().parent.parent
#: Base of `.env` and relative paths: the checkout, or a folder in the user's home if cc-ci was installed without one.
PROJECT = (
    BASE_DIR
    if (BASE_DIR / "manage.py").is_file()
    else Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "cc-ci"
)
ENV_FILE = "CC_CI_ENV_FILE"
#: Set by `cc-ci work` for its children; not settings.
MARK = "CC_CI_WORK"
#: Read by the commands that ask another server; not settings of this one.
SERVER, TOKEN = "CC_CI_SERVER", "CC_CI_TOKEN"


class ConfigurationError(Exception):
    """Invalid settings. The message has one line for each, with the variable's name and the reason."""


def _words(value: Any) -> Any:
    """Split `a, b c` into ["a", "b", "c"]; return lists unchanged."""
    if isinstance(value, str):
        return value.replace(",", " ").split()
    return value


#: Several words, separated by spaces or commas.
Words = Annotated[list[str], NoDecode, BeforeValidator(_words)]


class Config(BaseSettings):
    """All settings. A field's alias is its environment variable: CC_CI_ and its name, unless it has one of its own."""

    model_config = SettingsConfigDict(
        env_file_encoding="utf-8", extra="ignore", populate_by_name=True, alias_generator=lambda name: f"CC_CI_{name.upper()}"
    )

    secret_key: str = Field(
        "", alias="SECRET_KEY", description="Django's signing key. If empty, one is generated and kept in the data folder."
    )
    debug: bool = Field(False, alias="DEBUG", description="Show tracebacks in the browser. Never on a public server.")
    allowed_hosts: Words = Field(
        ["localhost", "127.0.0.1", "[::1]"],
        alias="ALLOWED_HOSTS",
        description="Host names that this server answers to, separated by commas; those of CC_CI_BASE_URL and "
        "CC_CI_WEBHOOK_URL are included.",
    )
    database_url: str = Field(
        "",
        alias="DATABASE_URL",
        description="`sqlite:///path` or `postgresql://user:password@host:5432/name`. Empty: SQLite in CC_CI_DATA_DIR.",
    )
    webhook_autoregister: bool = Field(
        False,
        alias="WEBHOOK_AUTOREGISTER",
        description="Register and maintain webhooks at the forges where the token's permissions allow it. Polling "
        "continues, less often.",
    )
    webhook_url: str = Field("", description="URL at which the forges reach this server, if not CC_CI_BASE_URL.")
    webhook_reenable: bool = Field(False, description="Re-enable one of our webhooks when somebody disabled it at the forge.")
    delivery_days: int = Field(7, ge=1, le=365, description="Days to keep deliveries.")
    data_dir: Path = Field(
        Path("var"), description="Folder for the database, keys and run folders. A relative path starts at the project."
    )
    base_url: str = Field("http://127.0.0.1:8000", description="Public URL of these pages; links in comments begin with it.")
    proxies: Words = Field(
        [],
        description="Reverse proxies in front of this server, as addresses or networks, such as `127.0.0.1 "
        "10.0.0.0/8`. Only these are trusted to report a client's address, and that it used https.",
    )
    secret_keys: Words = Field(
        [],
        description="Fernet keys for tokens in the database, separated by commas; the first encrypts. "
        "Empty: `secret-keys` in the data folder.",
    )
    poll_seconds: float = Field(30, ge=1, le=3600, description="Seconds between polls of a forge.")
    poll_rarely_seconds: float = Field(
        600, ge=1, le=86400, description="Seconds between polls of a repository whose webhooks work."
    )
    deployer: Literal["auto", "swarm", "process"] = Field(
        "auto", description="How recipes are deployed: on the local Docker Swarm, as plain processes, or automatically chosen."
    )
    domain: str = Field("", description="Wildcard domain under which each run gets its own name, if there is one.")
    proxy_url: str = Field(
        "", description="The server's reverse proxy, such as http://127.0.0.1:80. Empty: use the app's own address."
    )
    slots: int = Field(1, ge=1, le=64, description="Concurrent runs on this host. Executors have slots of their own.")
    repository_slots: int = Field(
        0,
        ge=0,
        le=64,
        description="Concurrent runs of one repository, which is one recipe, on all hosts and executors together. 0: no limit.",
    )
    supersede: Literal["queued", "running"] = Field(
        "running",
        description="What a newer request on the same pull request stops. `queued`: a run that waits; "
        "`running`: also one under way.",
    )
    close: Literal["queued", "running"] = Field(
        "queued",
        description="What closing or merging a pull request cancels. `queued`: runs that wait; `running`: also one under way.",
    )
    run_seconds: int = Field(1800, ge=10, le=86400, description="Time limit of a run, in seconds.")
    stage_seconds: int = Field(600, ge=5, le=86400, description="Time limit of one stage's tests, in seconds.")
    start_seconds: int = Field(
        1800,
        ge=5,
        le=86400,
        description="Longest startup time that a recipe may request, in seconds. Not counted towards other limits.",
    )
    pull_seconds: int = Field(
        1800, ge=5, le=86400, description="Time limit for all image pulls of a run, in seconds. Not counted towards other limits."
    )
    memory_mb: int = Field(2048, ge=64, description="Memory limit for a recipe's tests, in megabytes.")
    processes: int = Field(512, ge=16, description="Process limit for a recipe's tests.")
    disk_mb: int = Field(2048, ge=16, description="Disk limit for a recipe's tests, in megabytes.")
    app_memory_mb: int = Field(2048, ge=16, description="Memory limit for each service of a run, in megabytes.")
    app_cpus: float = Field(1.0, ge=0.1, le=1024, description="CPU limit for each service of a run.")
    app_processes: int = Field(1024, ge=16, description="Process limit for each service of a run.")
    app_log_mb: int = Field(20, ge=2, description="Megabytes that Docker keeps of each service's log.")
    volumes_mb: int = Field(
        8192, ge=16, description="Megabytes that a run's app may write, inside and outside of volumes; exceeding it ends the run."
    )
    most_tasks: int = Field(20, ge=1, description="Tasks (services times replicas) that a run may request.")
    most_services: int = Field(20, ge=1, description="Services that a run may have.")
    most_secrets: int = Field(50, ge=1, description="Secrets that a run may have.")
    most_configs: int = Field(50, ge=1, description="Configs that a run may have.")
    most_networks: int = Field(20, ge=1, description="Networks that a run may have; each takes an address range.")
    firewall_allow: Words = Field(
        [], description="What every run may reach on this host or in private ranges, such as `10.1.2.3:5432/tcp`, `10.2.0.0/16`."
    )
    firewall_everything: bool = Field(
        False,
        description="Apply the firewall rules to everything that leaves via docker_gwbridge, including this server's own apps.",
    )
    firewall_probe: bool = Field(
        True, description="Let `cc-ci doctor` test from a container what a run can reach; takes a second or two."
    )
    pictures: bool = Field(True, description="Take a screenshot of each app, if Chromium is installed on this host.")
    image_gb: float = Field(
        0,
        ge=0,
        description="Gigabytes of images that runs may leave on this host; the least recently used are removed first. "
        "0 keeps all.",
    )
    registries: Words = Field(
        [],
        description="Registries that runs may pull images from, such as `docker.io ghcr.io registry.example.org:5000`. "
        "Empty: any public one (named by a domain with a dot, not by an address, and not in a private "
        "range).",
    )
    registry_mirror: str = Field(
        "",
        pattern=r"^([A-Za-z0-9.-]+(:\d+)?)?$",
        description="A registry to try first for Docker Hub images, such as `mirror.example.org:5000`.",
    )
    registry_auth: Path | None = Field(
        None, description="A Docker `config.json` with registry logins, read for each pull. Never exposed to recipe code."
    )
    oidc_url: str = Field(
        "", description="The Keycloak that lends a realm to each run whose recipe needs one, such as `https://id.example.org`."
    )
    oidc_user: str = Field("admin", description="The Keycloak user that may create and delete realms.")
    oidc_password: SecretStr = Field(SecretStr(""), description="That user's password.")
    public: bool = Field(
        True, description="Whether anybody may see the pages of public repositories. `0`: all pages require a login."
    )
    verdict: Literal["post", "edit"] = Field(
        "post",
        description="`post`: the verdict is a new comment, which notifies people. `edit`: the first comment is edited, "
        "which notifies nobody.",
    )
    outsiders: Literal["reply", "silent"] = Field(
        "reply", description="What to answer people who may not request a run: one short reply, or nothing."
    )
    bots: Words = Field([], description="Login names of other bots, separated by commas. Their comments never start a run.")
    alerts: Annotated[list[str], NoDecode] = Field(
        [],
        description="Where to send alerts about this server's own apps and about scheduled runs: Apprise addresses "
        "(Matrix, mail, …), separated by spaces.",
        repr=False,
    )
    infra_file: Path | None = Field(
        None,
        description="Path of the `infra.yml` that declares this server's own apps, until one was applied from "
        "elsewhere. A relative path starts at the project. Empty: `infra.yml` in the data folder.",
    )
    schedule: Literal["never", "nightly", "weekly"] = Field(
        "never",
        description="How often each watched recipe's default branch and newest published version are tested without being "
        "asked for.",
    )
    schedule_window: str = Field(
        "01:00-05:00",
        description="When scheduled runs start, spread evenly: `[DAYS ]HH:MM-HH:MM[ ZONE]`, such as `Mon-Fri 22:00-04:00 "
        "Europe/Berlin`. Without a zone in UTC.",
    )
    schedule_extra_tests: bool = Field(False, description="Whether scheduled runs include extra tests.")
    schedule_issues: bool = Field(
        False,
        description="When scheduled runs no longer pass: open an issue in the recipe's repository, and close it when they pass "
        "again. Otherwise an alert is sent.",
    )
    topic: str = Field("cc-ci", description="Repositories of a watched owner with this topic are enrolled.")
    status_context: str = Field("cc-ci", description="Name of the commit status.")
    workers: int = Field(2, ge=1, le=64, description="Worker processes of the task queue on this host.")
    queue_timeout: int = Field(60, ge=5, description="Seconds after which a task is stopped.")
    queue_retry: int = Field(
        90, ge=6, description="Seconds after which an unfinished task is queued again. More than CC_CI_QUEUE_TIMEOUT."
    )
    requests_per_minute: int = Field(
        600, ge=0, description="Requests per minute to one forge, from all processes together; at least 60. 0: no limit."
    )
    http_timeout: float = Field(10, gt=0, le=50, description="Timeout for a forge's response, in seconds.")
    host: str = Field(
        default_factory=socket.gethostname,
        description="Name of this host among several that share a database. Default: its host name.",
        max_length=100,
        pattern=r"^[A-Za-z0-9._-]+$",
    )
    api_requests_per_minute: int = Field(
        120, ge=1, le=100_000, description="Requests per minute to the API with one token, at all hosts together."
    )
    known_good_mb: int = Field(
        1024,
        ge=0,
        le=1 << 20,
        description="Megabytes of known-good data to keep for each recipe, for `!testme --quick`. 0 keeps none.",
    )
    keep_days: int = Field(90, ge=1, description="Days to keep finished runs and their logs.")

    @field_validator("alerts", mode="before")
    @classmethod
    def _addresses(cls, value: Any) -> Any:
        return value.split() if isinstance(value, str) else value  # an address may contain commas

    @field_validator("alerts")
    @classmethod
    def _readable_addresses(cls, addresses: list[str]) -> list[str]:
        if addresses:
            import apprise  # takes a tenth of a second

        for number, address in enumerate(addresses, 1):
            if not apprise.Apprise().add(address):
                # Keep the address out of the message: it contains secrets.
                raise ValueError(f"address number {number} is unknown to Apprise; see https://appriseit.com/services/")
        return addresses

    @field_validator("schedule_window")
    @classmethod
    def _window(cls, text: str) -> str:
        Window.parse(text)  # its error is a ValueError
        return text

    @field_validator("proxies")
    @classmethod
    def _networks(cls, proxies: list[str]) -> list[str]:
        for proxy in proxies:
            try:
                network = ipaddress.ip_network(proxy, strict=False)
            except ValueError:
                raise ValueError(f"invalid address or network {proxy}: expected 127.0.0.1 or 10.0.0.0/8") from None
            if network.prefixlen == 0:
                raise ValueError(f"{proxy} trusts everybody, so anybody could forge an address; list your proxies")
        return proxies

    @property
    def proxy_networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        return [ipaddress.ip_network(proxy, strict=False) for proxy in self.proxies]

    @property
    def hosts(self) -> list[str]:
        """Host names accepted in requests. Forges may reach this server by another name than people do."""
        found = list(self.allowed_hosts)
        for url in (self.base_url, self.webhook_url):
            if host := urlsplit(url).hostname:
                found.append(f"[{host}]" if ":" in host else host)
        return found

    @field_validator("secret_keys")
    @classmethod
    def _fernet_keys(cls, keys: list[str]) -> list[str]:
        from cryptography.fernet import Fernet

        for number, key in enumerate(keys, 1):
            try:
                Fernet(key)
            except ValueError:
                # Keep the key out of the message: messages end up in logs.
                raise ValueError(f"key number {number} is not a Fernet key; `cc-ci rotate_keys --new` creates one") from None
        return keys

    @field_validator("registries")
    @classmethod
    def _registry_hosts(cls, values: list[str]) -> list[str]:
        for value in values:
            if not re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?", value):
                raise ValueError(f"invalid registry {value}: expected docker.io or registry.example.org:5000")
        hub = ("index.docker.io", "registry-1.docker.io")  # its other names
        return ["docker.io" if value.lower() in hub else value.lower() for value in values]

    @field_validator("firewall_allow")
    @classmethod
    def _reachable(cls, values: list[str]) -> list[str]:
        """As parsed by `infra.deployers.docker.egress.parse`."""
        for value in values:
            found = re.fullmatch(r"(?:\[([^\]]+)\]|([^\[\]:]+)):([0-9]{1,5})(?:/(?:tcp|udp))?", value)
            try:
                version = ipaddress.ip_network(found[1] or found[2] if found else value).version
                if found and ((version == 6) != bool(found[1]) or not 0 < int(found[3]) < 65536):
                    raise ValueError
            except ValueError:
                raise ValueError(f"invalid target {value}: expected 10.1.2.3:5432/tcp, [fd00::1]:636 or 10.1.0.0/16") from None
        return values

    @field_validator("base_url", "proxy_url", "oidc_url", "webhook_url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        value = value.rstrip("/")
        if value:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must look like https://ci.example.org")
        return value

    @field_validator("base_url")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value:
            raise ValueError("must not be empty: comments link to it")
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value:
            parse_database_url(value, PROJECT)
        return value

    @field_validator("requests_per_minute")
    @classmethod
    def _enough_requests(cls, value: int) -> int:
        if 0 < value < 60:
            raise ValueError("must be at least 60, or 0 for no limit: with fewer requests, work cannot finish")
        return value

    @field_validator("infra_file", mode="before")
    @classmethod
    def _no_file(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("registry_auth")
    @classmethod
    def _readable_logins(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError("the file does not exist; create it with `docker login`, or leave this empty")
        return path

    @model_validator(mode="after")
    def _queue_times(self) -> Config:
        if self.queue_retry <= self.queue_timeout:
            raise ValueError(
                f"CC_CI_QUEUE_RETRY ({self.queue_retry}) must be more than CC_CI_QUEUE_TIMEOUT ({self.queue_timeout}), "
                "or a task is queued again while it is still running"
            )
        if self.http_timeout >= self.queue_timeout:
            raise ValueError("CC_CI_HTTP_TIMEOUT must be less than CC_CI_QUEUE_TIMEOUT")
        return self

    @property
    def is_sqlite(self) -> bool:
        return not self.database_url or self.database_url.startswith("sqlite:")


def parse_database_url(url: str, relative_to: Path) -> dict[str, Any]:
    """Parse a URL to a Django `DATABASES` entry. Raises ValueError with the reason, never with the password."""
    from urllib.parse import parse_qsl, unquote

    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        path = unquote(url.removeprefix("sqlite://"))
        if not path.startswith("/") or path == "/":
            raise ValueError("must look like sqlite:///var/db.sqlite3 (relative) or sqlite:////srv/db.sqlite3 (absolute)")
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(relative_to / path.removeprefix("/"))}
    if parts.scheme in ("postgresql", "postgres"):
        try:
            port = parts.port
        except ValueError:
            raise ValueError("the port must be a number") from None
        name = unquote(parts.path.lstrip("/"))
        if not name:
            raise ValueError("missing database name: postgresql://user:password@host:5432/NAME")
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": unquote(parts.hostname or ""),
            "PORT": port or "",
            "OPTIONS": dict(parse_qsl(parts.query)),
        }
    raise ValueError("must begin with sqlite:// or postgresql://")


def env_file() -> Path | None:
    """The file that supplies variables missing from the environment: `.env`, or the one named by CC_CI_ENV_FILE."""
    name = os.environ.get(ENV_FILE, ".env")
    return PROJECT / name if name else None


#: pydantic's kinds of errors in our words, to be formatted with its context.
_WORDS = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
}
#: Settings whose values are, or may hold, secrets.
_SECRET = re.compile(r"SECRET|KEY|PASSWORD|TOKEN|DATABASE_URL|ALERT")


def _in_words(problem: Any, name: str) -> str:
    """What is wrong with a setting, with its value unless that may be a secret."""
    words = _WORDS.get(problem["type"])
    if words is None:
        return str(problem["msg"]).removeprefix("Value error, ")
    given = "" if _SECRET.search(name) else f", but is {str(problem['input'])[:80]!r}"
    return words.format(**problem.get("ctx", {})) + given


def load(**values: Any) -> Config:
    """Load the settings. Raises ConfigurationError with a line for each invalid value."""
    try:
        config = Config(_env_file=env_file(), **values)  # type: ignore[call-arg]
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            name = str(problem["loc"][0]) if problem["loc"] else ""
            lines.append(f"{name}: {_in_words(problem, name)}" if name else _in_words(problem, name))
        raise ConfigurationError("\n".join(lines)) from None
    if not config.data_dir.is_absolute():
        config.data_dir = PROJECT / config.data_dir
    if config.infra_file is not None:
        config.infra_file = PROJECT / config.infra_file
    return config


def unknown_names() -> list[tuple[str, str]]:
    """Unknown `CC_CI_*` names in the environment or `.env`, each with the closest known one (or an empty string)."""
    from difflib import get_close_matches

    from dotenv import dotenv_values

    known = [str(field.alias) for field in Config.model_fields.values()]
    given = {name for name in os.environ if name.startswith("CC_CI_")} - {ENV_FILE, MARK, SERVER, TOKEN}
    if path := env_file():
        lines = dotenv_values(path)
        given |= {name for name in lines if name.startswith("CC_CI_") or get_close_matches(name, known, 1, 0.8)}
    strangers = sorted(given - set(known))
    return [(name, next(iter(get_close_matches(name, known, 1, 0.75)), "")) for name in strangers]
