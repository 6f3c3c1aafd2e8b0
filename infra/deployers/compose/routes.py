"""What a recipe may configure on the server's reverse proxy: routes to itself, under its own domain, and nothing else. Pure.

Traefik reads the labels of every service on the swarm, even of those that share no network with it, so they are checked whether
or not the run uses it. Everything unknown is refused. TCP and UDP routers are not deployed in a run: their entry points cannot
be shared, and ports are reached directly. The same applies to the proxy's own health checks.

Sources: Traefik's reference of Docker labels and rules, versions 2 and 3, and how version 3 reads those in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

_LONGEST_RULE = 4096
_DEPTH = 50
_LONGEST_PATTERN, _MOST_PIECES = 500, 10
#: A counted repetition of a group, or of more than 99.
_REPEATED = re.compile(r"\)\{[0-9]|\{[0-9]*,?[0-9]{3}")
_SCHEMES = ("http", "https", "h2c")
_MOST_REFERENCES, _MOST_FILLED_IN = 20, 3
#: `name:hash`: as bcrypt with few rounds, as MD5 of Apache, as SHA-1, or of digests; or nothing.
_LOGINS = re.compile(r"|[^:]+:(?:\$2[abxy]?\$(?:0[4-9]|1[0-2])\$.*|\$(?:apr)?1\$.*|\{SHA\}.*|[^${].*)")
_ATTEMPTS = tuple(map(str, range(1, 6)))
#: What the proxy puts aside of a request, and of an answer, before it goes on.
_BUFFER_BYTES = 16 << 20
_OWN_RULE = "write Host(`${DOMAIN}`)"
_TOKEN = re.compile(r"""[ \t\n]*(?:(&&|\|\||[!(),])|([A-Za-z]+)|`([^`\x00-\x08\x0b-\x1f]*)`|"([^"\\\x00-\x1f]*)")""")
_HOSTS = frozenset({"host", "hostheader"})
_PATTERNS = frozenset({"hostregexp"})
#: Matchers of HTTP that bind no host. (ClientIP is for TCP as well.)
_OTHERS = frozenset({"path", "pathprefix", "pathregexp", "method", "query", "queryregexp", "clientip"}) | frozenset(
    {"header", "headers", "headerregexp", "headersregexp"}
)
#: What such a matcher lets through of a GET of `/`.
_AT_THE_START = {
    "path": ("/",),
    "pathprefix": ("/",),
    "pathregexp": ("/", "^/", "^/$", "^/.*", "^/.*$", ".*"),
    "method": ("get",),
}
_ONLY_HTTP = (_HOSTS | _PATTERNS | _OTHERS) - {"clientip"}
_ONLY_TCP = frozenset({"hostsni", "hostsniregexp", "alpn"})
_TCP_RULE = re.compile(r"\s*traefik\.tcp\.routers\.[^.]+\.rule", re.IGNORECASE)
#: What is never closed goes on to the end.
_QUOTED = re.compile(r"""`[^`]*(?:`|\Z)|"(?:[^"\\]|\\.?)*(?:"|\Z)""", re.DOTALL)
_CALLED = re.compile(r"(?<![A-Za-z])([A-Za-z]+)[ \t\n]*\(")
_TLS = r"tls|tls\.(?:certresolver|options)|tls\.domains\[\d+\]\.(?:main|sans)"
_ROUTER = re.compile(
    rf"rule|rulesyntax|entrypoints|middlewares|service|priority|{_TLS}|observability\.(?:accesslogs|metrics|tracing|traceverbosity)"
)
_SERVICE = re.compile(
    r"loadbalancer\.(?:server\.(?:port|scheme|weight)|passhostheader|strategy|responseforwarding\.flushinterval"
    r"|sticky|sticky\.cookie(?:\.[a-z]+)?)"
)
#: With one the proxy itself asks, again and again, and goes wherever the answer leads.
_HEALTHCHECK = re.compile(r"\s*traefik\.http\.services\.[^.]+\.loadbalancer\.healthcheck\..+", re.IGNORECASE | re.DOTALL)
_STRATEGY = r"ipstrategy|ipstrategy\.(?:depth|excludedips|ipv6subnet)"
_SOURCE = rf"sourcecriterion\.(?:{_STRATEGY}|requestheadername|requesthost)"
_LOGIN = "headerfield|realm|removeheader|users"
_REPLACED = "regex|replacement"
_PERSON = "commonname|country|domaincomponent|locality|organization|organizationalunit|province|serialnumber"
#: Middlewares that change requests and answers, with their options. Not here: what makes the proxy ask others (`redis`), read
#: its own files (`usersfile`, `tls`), or hold much in its memory (`memresponsebodybytes`; `forwardauth` holds whole answers, and
#: chains of chains unfold to billions); nor plugins.
_OPTIONS = {
    "addprefix": "prefix",
    "basicauth": _LOGIN,
    "buffering": "maxrequestbodybytes|maxresponsebodybytes",  # see `bounded`
    "circuitbreaker": "checkperiod|expression|fallbackduration|recoveryduration|responsecode",
    "compress": "defaultencoding|encodings|excludedcontenttypes|includedcontenttypes|minresponsebodybytes",
    "contenttype": "autodetect",
    "digestauth": _LOGIN,
    "errors": r"errorrequestheaders|query|service|status|statusrewrites\.[^.]+",
    "grpcweb": "alloworigins",
    "headers": r"(?:customrequestheaders|customresponseheaders|sslproxyheaders)\.[^.]+|addvaryheader|allowedhosts"
    "|accesscontrol(?:allowcredentials|allowheaders|allowmethods|alloworigin(?:|list|listregex)|exposeheaders|maxage)"
    "|browserxssfilter|contentsecuritypolicy|contentsecuritypolicyreportonly|contenttypenosniff|custombrowserxssvalue"
    "|customframeoptionsvalue|featurepolicy|forcestsheader|framedeny|hostsproxyheaders|isdevelopment|permissionspolicy|publickey"
    "|referrerpolicy|ssl(?:forcehost|host|redirect|temporaryredirect)|sts(?:includesubdomains|preload|seconds)",
    "inflightreq": f"amount|{_SOURCE}",
    "ipallowlist": f"{_STRATEGY}|rejectstatuscode|sourcerange",
    "ipwhitelist": f"{_STRATEGY}|sourcerange",
    "passtlsclientcert": rf"pem|info\.(?:notafter|notbefore|sans|serialnumber|(?:issuer|subject)\.(?:{_PERSON}))",
    "ratelimit": f"average|burst|period|sourcecriterion\\.(?:{_STRATEGY}|requesthost)",  # it remembers each, and headers are long
    "redirectregex": f"permanent|{_REPLACED}",
    "redirectscheme": "permanent|port|scheme",
    "replacepath": "path",
    "replacepathregex": _REPLACED,
    "retry": "attempts|initialinterval",
    "stripprefix": "forceslash|prefixes",
    "stripprefixregex": "regex",
}
_MIDDLEWARES = {kind: re.compile(options) for kind, options in _OPTIONS.items()}
_NAMED = re.compile(r"traefik\.(?i:http\.(routers|services|middlewares))\.([^.]+)\.(.+)", re.DOTALL)
_PORT = "loadbalancer.server.port"
#: As Go reads them, and so Traefik.
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
_GREATEST_PRIORITY = (1 << 63) - 1 - 1000
#: The entry point for HTTPS, as the field's own traefik and Traefik's examples name it.
_SECURE = frozenset({"web-secure", "websecure"})
_KNOWN_ENTRIES = _SECURE | {"web"}
_BUFFERING = re.compile(r"traefik\.http\.middlewares\.([^.]+)\.buffering(?:\.([a-z]+))?", re.IGNORECASE)
_SWARM = re.compile(r"traefik\.(?:docker\.network|docker\.lbswarm|swarm\..*)", re.IGNORECASE)
_OURS_AT = re.compile("@(?:swarm|docker)$")
_NOT_OURS = " is not a name of this stack; begin it with ${STACK_NAME}"
_FREE = re.compile(r"traefik\.(?:enable|docker\.network|docker\.lbswarm|swarm\.network|swarm\.lbswarm)")


def problems(labels: Mapping[str, str], domain: str, stack: str) -> Iterator[tuple[str, str]]:
    """Problems with a service's labels in one file: key and message. Labels that are not deployed (below) are not judged.

    A name that is not the stack's is reported once, by the first of its labels.
    """
    told: set[str] = set()
    for key, value in labels.items():
        if _is_traefiks(key) and not _is_left_out(key) and (problem := _label(key, value, domain, stack)):
            if problem not in told:
                yield key, problem
            if problem.endswith(_NOT_OURS):
                told.add(problem)


def unruled(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Routers without a rule among all labels of a service: the first label's key and a message."""
    routers: dict[str, list[str]] = {}
    for key in labels:
        start = ".".join(key.split(".")[:4])
        if re.fullmatch(r"traefik\.http\.routers\.[^.]+", start, re.IGNORECASE):
            routers.setdefault(start.lower(), []).append(key)
    for start, keys in routers.items():
        if f"{start}.rule" not in [key.lower() for key in keys]:
            yield keys[0], f"the router has no rule, so the server's default applies; {_OWN_RULE} as its rule"


def without_tcp_and_udp(labels: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The labels that a run deploys, and the keys of its TCP and UDP labels, which it does not, in order.

    The proxy's own health checks are not deployed either; `misplaced` reports them. Other spellings that Traefik might accept
    (`traefik.tcp[0].…`, `traefik.tcp` alone) are refused by `problems`.
    """
    left_out = [key for key in labels if _is_tcp_or_udp(key)]
    return {key: value for key, value in labels.items() if not _is_left_out(key)}, left_out


def misplaced(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Keys and messages of warnings: TCP routers with an HTTP matcher, and the proxy's own health checks."""
    if checks := [key for key in labels if _HEALTHCHECK.fullmatch(key)]:
        yield ", ".join(checks), "not deployed: the proxy would send the requests itself, anywhere; use healthcheck"
    for key, rule in labels.items():
        if not _TCP_RULE.fullmatch(key):
            continue
        called = _CALLED.findall(_QUOTED.sub("", rule[:_LONGEST_RULE]))
        if names := [name for name in dict.fromkeys(called) if name.lower() in _ONLY_HTTP]:
            verb = "is for HTTP only" if len(names) == 1 else "are for HTTP only"
            fix = "write HostSNI(`*`), or HostSNI(`${DOMAIN}`) with TLS"
            yield key, f"{' and '.join(names)} {verb}, and Traefik drops a TCP router with such a rule; {fix}"


def _is_traefiks(key: str) -> bool:
    # Traefik reads all but the first word of a key without regard to case; what it would not read is judged as well.
    return key.lower().lstrip().startswith("traefik")


def _is_tcp_or_udp(key: str) -> bool:
    return key.lower().lstrip().startswith(("traefik.tcp.", "traefik.udp."))


def _is_left_out(key: str) -> bool:
    return _is_tcp_or_udp(key) or bool(_HEALTHCHECK.fullmatch(key))


def _label(key: str, value: str, domain: str, stack: str) -> str:
    if len(value) > _LONGEST_RULE:
        return f"proxy labels must not be longer than {_LONGEST_RULE} characters"
    if not key.isascii():
        # To Traefik a long s is an s (`forwardauth.addreſſ`), to Python's lower() it is not.
        return "proxy labels must be plain ASCII"
    if _FREE.fullmatch(key.lower()):
        return ""
    parts = key.split(".")
    kinds = [part.lower() for part in parts]
    if len(parts) < 5 and not (len(parts) == 4 and kinds[2] == "middlewares"):
        return "unknown proxy label; remove it"
    if kinds[:2] != ["traefik", "http"]:
        return f"{'.'.join(parts[:2])} reaches beyond the run's own domain; remove it"
    name, rest = parts[3], ".".join(kinds[4:])
    if not _own_name(name, stack):
        # Two services that define one name differently make Traefik drop it, so the name alone can take a route away.
        return name + _NOT_OURS
    judge = {"routers": _router, "services": _service, "middlewares": _middleware}.get(kinds[2])
    if not judge:
        return f"{'.'.join(parts[:3])} is not allowed in recipes; remove it"
    return judge(rest, value, domain, stack)


def _router(rest: str, value: str, domain: str, stack: str) -> str:
    if not _ROUTER.fullmatch(rest):
        return "unknown router option; remove it"
    if rest == "rule":
        return rule_problem(value, domain)
    if rest in ("middlewares", "service"):
        return _references(value, stack)
    if rest == "tls.options" and value not in ("", "default"):
        return f"{value!r} belongs to the server; remove it or write default"
    if rest.startswith("tls.domains"):
        for name in filter(None, (word.strip() for word in value.split(","))):
            if not _own_host(name.removeprefix("*."), domain):
                return f"a certificate for {name!r}, which is another host; write ${{DOMAIN}}"
    return ""


def _service(rest: str, value: str, domain: str, stack: str) -> str:
    if not _SERVICE.fullmatch(rest):
        return "this service option may route to something other than the recipe's own tasks; use loadbalancer.server.port"
    if rest == "loadbalancer.server.port" and value and not _port(value):
        return f"invalid port {value[:20]!r}: expected a number from 1 to 65535"
    # Of it and the task's address the proxy makes a URL.
    if rest == "loadbalancer.server.scheme" and value not in _SCHEMES:
        return f"invalid scheme {value[:50]!r}: expected {' or '.join(_SCHEMES)}"
    return ""


def _middleware(rest: str, value: str, domain: str, stack: str) -> str:
    kind, _, option = rest.partition(".")
    if kind not in _MIDDLEWARES:
        return f"the middleware {kind} is not allowed in recipes; remove it"
    if option and not _MIDDLEWARES[kind].fullmatch(option):
        return f"the option {option} of the middleware {kind} is not allowed in recipes; remove it"
    if (kind, option) == ("errors", "service"):
        return _references(value, stack)
    if (kind, option) == ("errors", "query") and (len(value) > _LONGEST_PATTERN or value.count("{") > _MOST_FILLED_IN):
        return f"the query is longer than {_LONGEST_PATTERN} characters or has more than {_MOST_FILLED_IN} variables; shorten it"
    if option == "users" and not all(_LOGINS.fullmatch(user.strip()) for user in value.split(",")):
        return "this password hash takes the proxy too long to check; generate it with: htpasswd -nB -C 10"
    if option.endswith("regex") and (problem := _costly(value)):
        return problem
    if option == "replacement" and (len(value) > _LONGEST_PATTERN or value.count("$") > _MOST_PIECES):
        return f"the replacement is longer than {_LONGEST_PATTERN} characters or has more than {_MOST_PIECES} pieces; shorten it"
    if (kind, option) == ("retry", "attempts") and value not in _ATTEMPTS:
        return f"invalid number of attempts {value[:20]!r}: expected 1 to {len(_ATTEMPTS)}"
    return ""


def _costly(pattern: str) -> str:
    """Why a pattern is too expensive for the proxy: each step of a search costs as much as the pattern is long with its counted
    repetitions written out. Empty if it is not. Pure.
    """
    if len(pattern) > _LONGEST_PATTERN or _REPEATED.search(pattern):
        most = f"{_LONGEST_PATTERN} characters, and repeat only single characters, up to 99 times"
        return f"the pattern {pattern[:50]!r} is too expensive for the proxy; use at most {most}"
    return ""


def _references(value: str, stack: str) -> str:
    names = [name for word in value.split(",") if (name := word.strip())]
    if len(names) > _MOST_REFERENCES:
        return f"{len(names)} names, more than the {_MOST_REFERENCES} allowed"
    for name in names:
        plain, at, provider = name.partition("@")
        if at and provider not in ("swarm", "docker"):
            return f"{name!r} belongs to the server (@{provider}); define one in the recipe"
        if not _own_name(plain, stack):
            return f"{name!r} is not a name of this stack; define it in the recipe and begin its name with ${{STACK_NAME}}"
    return ""


def _own_name(name: str, stack: str) -> bool:
    return bool(stack) and bool(re.fullmatch(rf"{re.escape(stack)}(?:[-_][A-Za-z0-9_-]*)?", name))


def _own_host(host: str, domain: str) -> bool:
    return bool(domain) and bool(re.fullmatch(rf"(?:[a-z0-9_-]+\.)*{re.escape(domain.lower())}", host.lower()))


def _own_pattern(pattern: str, domain: str) -> bool:
    """Whether everything that a HostRegexp matches ends in the run's own domain.

    Without alternatives every part of a pattern is required, so its end decides. The domain's dots may be unescaped, since a
    recipe writes ${DOMAIN}: whatever else that matches still contains the run's own name.
    """
    if not domain or "|" in pattern:
        return False
    end = re.escape(domain.lower()).replace(r"\.", r"\\?\.").replace(r"\-", "-")
    lower = pattern.lower()
    version_2 = rf"\{{[a-z0-9_-]+(?::[^{{}}]+)?\}}\.{re.escape(domain.lower())}"
    return bool(re.fullmatch(rf"\^(?:[!-~]*\\\.)?{end}\$", lower) or re.fullmatch(version_2, lower))


class _Unclear(ValueError):
    """A rule that cannot be parsed."""


@dataclass(frozen=True)
class _Bounds:
    """Whether an expression, and its negation, match own hosts only; whether it matches a GET of `/` at the domain itself."""

    own: bool
    opposite: bool = False
    start: bool = False


def rule_problem(rule: str, domain: str) -> str:
    """Why a router's rule is not limited to the run's own domain; empty if it is."""
    try:
        bounds = _Rule(rule, domain).read()
    except _Unclear as error:
        return f"{error}; {_OWN_RULE}, or set the rule's variable for tests in [env] of cc-ci.toml"
    if not bounds.own:
        return f"the rule {rule[:100]!r} also matches other hosts; {_OWN_RULE}, joined with &&"
    return ""


class _Rule:
    """Parses a rule: `!`, then `&&`, then `||`, as in Go, whose parser Traefik uses."""

    def __init__(self, rule: str, domain: str) -> None:
        self._domain = domain
        self._tokens = list(self._split(rule))
        self._at = 0

    @staticmethod
    def _split(rule: str) -> Iterator[tuple[str, str]]:
        if len(rule) > _LONGEST_RULE:
            raise _Unclear("the rule is too long")
        rule = rule.strip(" \t\n")
        at = 0
        while at < len(rule):
            match = _TOKEN.match(rule, at)
            if not match:
                raise _Unclear(f"the rule cannot be parsed at {rule[at : at + 30]!r}")
            sign, word, raw, quoted = match.groups()
            yield (sign, sign) if sign else ("word", word) if word else ("text", quoted if raw is None else raw)
            at = match.end()

    def read(self) -> _Bounds:
        bounds = self._any(0)
        if self._at < len(self._tokens):
            raise _Unclear(f"the rule cannot be parsed at {self._tokens[self._at][1]!r}")
        return bounds

    def _next(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self, kind: str) -> str:
        if self._next() != kind:
            raise _Unclear("the rule is empty" if not self._tokens else f"the rule is missing a {kind}")
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _any(self, depth: int) -> _Bounds:
        return self._joined(
            "||", self._all, depth, lambda a, b: _Bounds(a.own and b.own, a.opposite or b.opposite, a.start or b.start)
        )

    def _all(self, depth: int) -> _Bounds:
        return self._joined(
            "&&", self._one, depth, lambda a, b: _Bounds(a.own or b.own, a.opposite and b.opposite, a.start and b.start)
        )

    def _joined(
        self, sign: str, part: Callable[[int], _Bounds], depth: int, join: Callable[[_Bounds, _Bounds], _Bounds]
    ) -> _Bounds:
        bounds = part(depth)
        while self._next() == sign:
            self._at += 1
            bounds = join(bounds, part(depth))
        return bounds

    def _one(self, depth: int) -> _Bounds:
        if depth > _DEPTH:
            raise _Unclear("the rule is nested too deeply")
        if self._next() == "!":
            self._at += 1
            inner = self._one(depth + 1)
            return _Bounds(inner.opposite, inner.own, not inner.start)
        if self._next() == "(":
            self._at += 1
            inner = self._any(depth + 1)
            self._take(")")
            return inner
        return self._matcher()

    def _matcher(self) -> _Bounds:
        name = self._take("word")
        self._take("(")
        texts = [self._take("text")]
        while self._next() == ",":
            self._at += 1
            texts.append(self._take("text"))
        self._take(")")
        kind = name.lower()
        for text in texts:
            if problem := _costly(text):
                raise _Unclear(problem)
        if kind in _ONLY_TCP:
            raise _Unclear(f"{name} is for TCP, but this is the rule of an HTTP router")
        if kind in _OTHERS:
            return _Bounds(False, start=any(text.lower() in _AT_THE_START.get(kind, ()) for text in texts))
        if kind not in _HOSTS | _PATTERNS:
            raise _Unclear(f"unknown matcher {name}")
        own = _own_host if kind in _HOSTS else _own_pattern
        for text in texts:
            if not own(text, self._domain):
                what = (
                    "another host"
                    if kind in _HOSTS
                    else ("not limited to the run's own domain: write HostRegexp(`^.+\\.${DOMAIN}$$`)")
                )
                raise _Unclear(f"{name}(`{text}`) is {what}")
        itself = self._domain.lower()
        return _Bounds(True, start=any(text.lower().replace("\\", "") in (itself, f"^{itself}$") for text in texts))


def _named(labels: Mapping[str, str], what: str) -> dict[str, dict[str, str]]:
    """Traefik's `routers`, `services` or `middlewares` of a service's labels: name -> option, in lower case -> value.

    Traefik reads all but the first word of a key without regard to case, in the order of the keys: a name stays as it was first
    spelled, and of an option's values the last one counts.
    """
    found: dict[str, dict[str, str]] = {}
    spelled: dict[str, str] = {}
    for key in sorted(labels):
        if (match := _NAMED.fullmatch(key)) and match[1].lower() == what:
            name = spelled.setdefault(match[2].lower(), match[2])
            found.setdefault(name, {})[match[3].lower()] = labels[key]
    return found


def _enabled(labels: Mapping[str, str]) -> bool | None:
    """What `traefik.enable` says; None if it is missing, or neither yes nor no."""
    keys = [key for key in labels if key.startswith("traefik.") and key.lower() == "traefik.enable"]
    return _BOOLEANS.get(labels[max(keys)]) if keys else None


def ports(labels: Mapping[str, str]) -> dict[str, int]:
    """The ports that the proxy forwards to, by Traefik's services, from a service's labels.

    Those with the shortest names come first: `${STACK_NAME}` before `${STACK_NAME}-console`.
    """
    named = [(name, port) for name, options in _named(labels, "services").items() if (port := _port(options.get(_PORT, "")))]
    return dict(sorted(named, key=lambda one: (len(one[0]), one[1])))


def serving(labels: Mapping[str, str], domain: str) -> dict[str, tuple[bool, bool, int]]:
    """Traefik's services to which a GET of `/` at this very host may be forwarded. The one with the greatest value gets it:
    whether Traefik is to serve it, whether by HTTPS, and its router's priority, by default the length of the rule.

    Routers that Traefik drops (`unserved`), or that are not for HTTPS, do not count.
    """
    services, routers, enabled = _named(labels, "services"), _named(labels, "routers"), bool(_enabled(labels))
    priorities = {name: _priority(router) for name, router in routers.items()}
    if not services or len(ports(labels)) < len(services) or None in priorities.values():
        return {}
    found: dict[str, tuple[bool, bool, int]] = {}
    for name, router in routers.items():
        entries = _list(router.get("entrypoints"))
        to = router.get("service", "").partition("@")[0] or (next(iter(services)) if len(services) == 1 else "")
        priority = priorities[name] or 0
        if not to or priority > _GREATEST_PRIORITY or (entries and _SECURE.isdisjoint(entries)):
            continue
        with suppress(_Unclear):
            if _Rule(router.get("rule", ""), domain).read().start:
                value = (enabled, _has_tls(router), priority)
                found[to] = max(found.get(to, value), value)
    return found


def _has_tls(router: Mapping[str, str]) -> bool:
    """Whether a router serves HTTPS: its label `tls`, without a value or `true`, decides, or else any option of it."""
    if "tls" in router:
        return router["tls"].lower() in ("", "true")
    return any(option.startswith("tls.") for option in router)


def _priority(router: Mapping[str, str]) -> int | None:
    """A router's priority; None if Traefik cannot read it."""
    given = router.get("priority", "0")
    number = int(given) if re.fullmatch("[+-]?[0-9]{1,19}", given) else None
    if number is None or not -(1 << 63) <= number < 1 << 63:
        return None
    return number or len(router.get("rule", "").encode())


def _list(value: str | None) -> list[str]:
    return [stripped for word in (value or "").split(",") if (stripped := word.strip())]


def unserved(labels: Mapping[str, str], others: Sequence[Mapping[str, str]] = ()) -> Iterator[tuple[str, str]]:
    """Keys and messages of warnings: why Traefik, as Co-op Cloud sets it up, does not serve routers of a service.

    `others`: the labels of the stack's services, which may define what a router names.
    """
    routers, services = _named(labels, "routers"), _named(labels, "services")
    enabled = _enabled(labels)
    if not routers or enabled is False:
        return
    if enabled is None:
        yield "traefik.enable", "not true, and Co-op Cloud's Traefik ignores such a service; write traefik.enable=true"
    if without := [name for name in services or list(routers)[:1] if not _port(services.get(name, {}).get(_PORT, ""))]:
        yield _some("services", without, _PORT), "not a port, and without it Traefik ignores all routers of the service"
    if unclear := [name for name, router in routers.items() if len(services) > 1 and not router.get("service")]:
        yield _some("routers", unclear, "service"), f"missing, so Traefik drops the router; there are {len(services)} services"
    priorities = {name: _priority(router) for name, router in routers.items()}
    if unreadable := [name for name, priority in priorities.items() if priority is None]:
        yield _some("routers", unreadable, "priority"), "not a possible number, so Traefik ignores all labels of the service"
    if great := [name for name, priority in priorities.items() if priority and priority > _GREATEST_PRIORITY]:
        yield _some("routers", great, "priority"), f"above {_GREATEST_PRIORITY}, so Traefik drops the router"
    for option, what in (("service", "services"), ("middlewares", "middlewares")):
        defined = {name for one in (labels, *others) for name in _named(one, what)}
        wanted = {name: [_OURS_AT.sub("", word) for word in _list(router.get(option))] for name, router in routers.items()}
        missing = {
            name: lacks[0] for name, words in wanted.items() if (lacks := [w for w in words if w not in defined and "@" not in w])
        }
        if missing:
            first = next(iter(missing.values()))[:100]
            yield _some("routers", list(missing), option), f"no label defines {first}, so Traefik drops the router"
    entries = [_list(router.get("entrypoints")) for router in routers.values()]
    if all(one and _KNOWN_ENTRIES.isdisjoint(one) for one in entries):
        yield (
            _some("routers", list(routers), "entrypoints"),
            "Co-op Cloud's Traefik has no such entry point by default; write web-secure",
        )


def _some(what: str, names: Sequence[str], option: str) -> str:
    """The keys of the first of these routers or services, and how many more there are: a stranger has as many as he likes."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(f"traefik.http.{what}.{name}.{option}" for name in names[:2]) + more


def _port(value: str) -> int:
    """A port's number; 0 if it is invalid. (The C library truncates a greater one to 16 bits.)"""
    return int(value) if re.fullmatch("[0-9]{1,5}", value) and int(value) < 65536 else 0


def any_of(labels: Mapping[str, str]) -> bool:
    """Whether a service has HTTP routes."""
    return any(key.lower().startswith("traefik.http.") for key in labels)


def bounded(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels, with a limit on what the proxy buffers of requests and answers (`buffering`); by default it has none."""
    found = dict(labels)
    names: dict[str, dict[str, str]] = {}
    for key in labels:
        if match := _BUFFERING.fullmatch(key):
            names.setdefault(match[1], {})[(match[2] or "").lower()] = found.pop(key)
    for name, options in names.items():
        for option in ("maxrequestbodybytes", "maxresponsebodybytes"):
            asked = options.get(option, "")
            most = int(asked) if re.fullmatch("[0-9]{1,18}", asked) else 0  # Traefik's word for no bound
            found[f"traefik.http.middlewares.{name}.buffering.{option}"] = str(min(most or _BUFFER_BYTES, _BUFFER_BYTES))
    return found


def lead_over(labels: dict[str, str], network: str) -> None:
    """Make the proxy reach a service over this network, whatever its labels say: it is on no other of the service's networks.

    `traefik.docker.network` works in every version: 2 and 3.0 to 3.2 know nothing else, and from 3.3 on a service with labels of
    both kinds, `traefik.docker.…` and `traefik.swarm.…`, is ignored.
    """
    for key in [key for key in labels if _SWARM.fullmatch(key.strip())]:
        value = labels.pop(key)
        if key.strip().lower().endswith(".lbswarm"):
            labels["traefik.docker.lbswarm"] = value
    labels["traefik.docker.network"] = network
