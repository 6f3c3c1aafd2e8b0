r"""The environment that a recipe's compose files are rendered with, as `abra app new` and `abra app deploy` make it. Pure.

Layers, each over the one before: the sample (`.env` or `.env.sample`), the versions that `abra.sh` exports, and more variables
from the caller. What the caller fixes (DOMAIN, STACK_NAME, …) is set from the first line on, and nothing changes it.

The sample is read as joho/godotenv 1.5.1 reads it, with these differences, all on purpose:

| written | godotenv | here |
|---|---|---|
| `${X:-d}`, `${X-d}`, also nested | the value of X, then `:-d}` | the default where X is empty or not set |
| `$x`, `$Xy`, `$2y$10` | names of capitals, digits and `_`: text, X then `y`, `y` | names as below: x, Xy, text |
| `$(X)`, `{$X}`, `${X` | X then `)`; `{` then X; X | text; `{`, X, `}`; text, and so is any other `${` |
| `A=1 # b # c`, `A= # b` | comment from the last `#`; the value `# b` | comment from the first `#` behind a blank |
| `"a\\"`, `"\\$X"` | quote not closed; `$X` | a backslash at the end; a backslash, then X |
| `"say \"hi\""`, `'a\''` | the quote character at the end is lost | it is kept |
| a byte order mark | refused | skipped |
| `A.B=1`, `A B=1`, `1A=1`, `=1` | taken | refused: names match `[A-Za-z_][A-Za-z0-9_]*` |
| `export A`, `A` at the end of the file | the variable with the empty name | refused, as on any other line |

As in godotenv, though a shell differs: `X: value`; in double quotes `\t` is `t`; in single quotes `\'` is both characters and
does not close them; another assignment may follow a closing quote on its line; a bare value keeps inner blanks and quotes, and
ends at a carriage return.

abra is said to put the domain in place of `<recipe>.example.com` inside longer names too (unverified); here the name has to
be whole.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

_LONGEST_VALUE = 100_000
#: Of all values that are ever set, those that a later line replaces included: so the work is bounded as well.
_LONGEST_TOGETHER = 1_000_000
_LONGEST_SECRET = 4096

_BLANK = " \t\v\f\r\x85\xa0"
_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_IS_NAME = re.compile(_NAME)
_SPACES = re.compile(f"[{_BLANK}\n\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*")
_BLANKS = re.compile(f"[{_BLANK}]*")
_ASSIGNMENT = re.compile(f"(?:export[{_BLANK}]+)?(?!export[{_BLANK}]+[=:])({_NAME})[{_BLANK}]*[=:][{_BLANK}]*")
_OTHER_NAME = re.compile(r"(?:export[ \t]+)?([^\s=:]+)[ \t]*[=:]")
_BARE = re.compile(r"[^\n\r]*")
_COMMENT = re.compile(f"(?<=[{_BLANK}])#")
_CLOSING = {'"': re.compile(r'\\.|(")', re.DOTALL), "'": re.compile(r"(?<!\\)(')")}

_REFERENCE = rf"\$\{{(?P<braced>{_NAME})(?P<after>\}}|:?-)|\$(?P<plain>{_NAME})|(?P<close>\}})"
_IN_BARE = re.compile(rf"\\(?P<escaped>\$)|{_REFERENCE}")
_IN_DOUBLE_QUOTES = re.compile(rf"\\(?P<escaped>.)|{_REFERENCE}", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r"}

_EXAMPLE_END = re.compile(r"example\.com(?![\w-]|\.\w)")
_DEFAULT_OPENED = re.compile(rf"\$\{{{_NAME}:?-\Z")
_RECIPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_EXAMPLE_DOMAIN = re.compile(r"(?=.{1,253}\Z)((?:[A-Za-z0-9_-]+\.)*)example\.com")

_EXPORT = re.compile(r"[ \t]*export(?![^ \t;&|<>()])")
_SHELL_BLANKS = re.compile(r"[ \t]*")
_NEXT_COMMAND = re.compile(r";|&&")
_WORD_ENDS = frozenset(" \t;&|<>()")
_PLAIN_WORD = re.compile(r"""[^\s"'`$\\(){}<>;&|]+|.""", re.DOTALL)
_PLAIN_INSIDE = re.compile(r"""[^"'`$\\(){}]+|.""", re.DOTALL)

MODIFIERS = ("length", "charset", "generate")
_MODIFIER = re.compile(rf"({'|'.join(MODIFIERS)})=(.*)", re.DOTALL)
_MODIFIER_COMMA = re.compile(r",(?=[A-Za-z_][A-Za-z0-9_]*=)")
_LENGTH = re.compile(r"0*([1-9][0-9]{0,3})")
_CHARSETS = {
    "default": string.ascii_letters + string.digits,
    "special": "!@#$%^&*_-+=",
    "safespecial": "!@#%^&*_-+=",
    "hex": "0123456789abcdef",
}


_SECRET_VERSION = re.compile(r"SECRET_\w+_VERSION")


def names_secret_version(variable: str) -> bool:
    """Whether a variable holds the version of a secret, as abra names them: SECRET_DB_PASSWORD_VERSION."""
    return _SECRET_VERSION.fullmatch(variable) is not None


@dataclass(frozen=True)
class Modifiers:
    """What the comment after a SECRET_X_VERSION line asks of the secret's value."""

    length: int = 32
    charset: str = ""  #: as written; empty is `default`
    generate: bool = True


@dataclass(frozen=True)
class Environment:
    """The variables, and the modifiers of the secrets whose lines have any."""

    values: Mapping[str, str]
    modifiers: Mapping[str, Modifiers]


class EnvironmentProblem(ValueError):
    """The environment cannot be built. The message gives place, problem and fix."""


def build(
    *,
    sample: str,
    exports: str,
    recipe: str,
    fixed: Mapping[str, str],
    added: Sequence[tuple[str, Mapping[str, str]]] = (),
    sample_name: str = ".env.sample",
) -> Environment:
    """The environment of one deployment of `recipe`. Raises EnvironmentProblem.

    `sample` and `exports` are the texts of the recipe's sample and its abra.sh; nothing in them is executed. `added`: further
    variables, in order, each group with its source for error messages. The modifiers on a fixed variable's line count too: they
    describe the secret, whoever sets its version.
    """
    assignments = list(_assignments(sample, sample_name))
    domain = fixed.get("DOMAIN", "")
    prefixes = _example_prefixes(recipe, {assignment.name: assignment for assignment in assignments}) if domain else []
    values = _Values(fixed)
    modifiers: dict[str, Modifiers] = {}

    for assignment in assignments:
        name = assignment.name
        try:
            if name.startswith("SECRET_") and name.endswith("_VERSION") and (asked := _modifiers(assignment.comment, name)):
                modifiers[name] = asked
            if name not in fixed:
                text = _with_domain(assignment.text, prefixes, domain)
                values.put(name, _filled_in(text, assignment.quote, values.all))
        except EnvironmentProblem as problem:
            raise EnvironmentProblem(f"{sample_name}:{assignment.line}: {problem}") from None

    for number, line in enumerate(exports.removeprefix("\ufeff").split("\n"), 1):
        try:
            for name, value in _exported(line.removesuffix("\r")):
                values.put(name, [value])
        except EnvironmentProblem as problem:
            raise EnvironmentProblem(f"abra.sh:{number}: {problem}") from None

    for place, variables in added:
        for name, text in variables.items():
            try:
                if not _IS_NAME.fullmatch(name):
                    raise EnvironmentProblem(_invalid_name(name))
                values.put(name, _filled_in(_with_domain(text, prefixes, domain), "", values.all))
            except EnvironmentProblem as problem:
                raise EnvironmentProblem(f"{place}: {problem}") from None
    return Environment(values.all, modifiers)


def alphabet(charset: str) -> str:
    """The characters of a charset such as `default,special`, without duplicates. Raises EnvironmentProblem."""
    names = charset.split(",") if charset else ["default"]
    for name in names:
        if name not in _CHARSETS:
            raise EnvironmentProblem(
                f"unknown charset {_short(name)}: use {', '.join(_CHARSETS)}, or several of them joined by commas."
            )
    return "".join(dict.fromkeys("".join(_CHARSETS[name] for name in dict.fromkeys(names))))


class _Values:
    """The variables so far, and how many more characters they may have."""

    def __init__(self, fixed: Mapping[str, str]) -> None:
        self.all = dict(fixed)
        self._fixed = frozenset(fixed)
        self._left = _LONGEST_TOGETHER - sum(map(len, fixed.values()))

    def put(self, name: str, pieces: Sequence[str]) -> None:
        """Set a variable, unless it is fixed."""
        if name in self._fixed:
            return
        length = sum(map(len, pieces))
        self._left -= length
        if length > _LONGEST_VALUE or self._left < 0:
            problem = (
                f"the value of {_short(name)} is longer than {_LONGEST_VALUE:,} characters"
                if length > _LONGEST_VALUE
                else f"with {_short(name)} all values together are longer than {_LONGEST_TOGETHER:,} characters"
            )
            raise EnvironmentProblem(f"{problem}. Shorten it, or refer to fewer long variables in it.")
        value = "".join(pieces)
        if "\0" in value:
            raise EnvironmentProblem(f"the value of {_short(name)} contains a NUL character. Remove it.")
        self.all[name] = value


def _filled_in(text: str, quote: str, values: Mapping[str, str]) -> list[str]:
    """A value with its variables expanded, in pieces to join. `quote`: the quotes around it, empty for a bare value.

    One pass, no recursion: an open `${X:-` waits on a stack for its closing brace.
    """
    if quote == "'" or ("$" not in text and "\\" not in text):
        return [text]
    pieces: list[str] = []
    opened: list[tuple[int, str | None]] = []  # for each open default: where it starts, and what goes before it
    at = 0
    for token in (_IN_DOUBLE_QUOTES if quote else _IN_BARE).finditer(text):
        pieces.append(text[at : token.start()])
        at = token.end()
        if (escaped := token["escaped"]) is not None:
            pieces.append(_ESCAPES.get(escaped, escaped))
        elif name := token["plain"]:
            pieces.append(values.get(name, ""))
        elif name := token["braced"]:
            value = values.get(name)
            if token["after"] == "}":
                pieces.append(value or "")
            else:
                opened.append((len(pieces), value if token["after"] == "-" else value or None))
                pieces.append(token[0])  # stays as text when no brace closes it
        elif opened:
            start, value = opened.pop()
            if value is None:
                pieces[start] = ""
            else:
                pieces[start:] = [value]
        else:
            pieces.append("}")
    pieces.append(text[at:])
    return pieces


class _Assignment(NamedTuple):
    """One statement of the sample, as written."""

    line: int
    name: str
    text: str
    quote: str  #: around the value; empty for a bare one
    comment: str  #: behind the value, without its `#`


def _assignments(text: str, file: str) -> Iterator[_Assignment]:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    at, counted, line = 0, 0, 1
    after: tuple[str, int] | None = None  # the variable whose quoted value ends on this line, and where it begins
    while True:
        start = _end_of(_SPACES, text, at)
        if "\n" in text[at:start]:
            after = None
        line += text.count("\n", counted, start)
        counted = at = start
        if at == len(text):
            return
        if text[at] == "#":
            at = _end_of_line(text, at)
            continue
        found = _ASSIGNMENT.match(text, at)
        if not found:
            raise EnvironmentProblem(f"{file}:{line}: {_not_an_assignment(text[at : _end_of_line(text, at)], after)}")
        name, at = found[1], found.end()
        quote = text[at : at + 1]
        if quote in _CLOSING:
            closing = next((match for match in _CLOSING[quote].finditer(text, at + 1) if match[1]), None)
            if not closing:
                kind = "double" if quote == '"' else "single"
                raise EnvironmentProblem(
                    f"{file}:{line}: unclosed {kind} quote in the value of {_short(name)}. Write {quote} at the end of the value."
                )
            value = text[at + 1 : closing.start()]
            at = _end_of(_BLANKS, text, closing.end())
            end = _end_of_line(text, at) if text.startswith("#", at) else at
            comment = text[at + 1 : end]
            after = name, line
        else:
            quote = ""
            end = _end_of(_BARE, text, at)
            remark = _COMMENT.search(text, at, end)
            value = text[at : remark.start() if remark else end].strip(_BLANK)
            comment = text[remark.end() : end] if remark else ""
            after = None
        at = end
        yield _Assignment(line, name, value, quote, comment)


def _not_an_assignment(rest: str, after: tuple[str, int] | None) -> str:
    if after:
        return (
            f"unexpected text {_short(rest)} after the closing quote of {_short(after[0])} (line {after[1]}). "
            "Put the whole value inside the quotes, or begin a comment with #."
        )
    if found := _OTHER_NAME.match(rest):
        return _invalid_name(found[1])
    return f"{_short(rest)} is not an assignment. Write NAME=value, or put # before a comment."


def _invalid_name(name: str) -> str:
    return (
        f"invalid variable name {_short(name)}. "
        "Use only the letters A-Z and a-z, digits and underscores, and do not start with a digit."
    )


def _modifiers(comment: str, name: str) -> Modifiers | None:
    """The modifiers in a secret's comment; None if there are none. All other words are ignored."""
    asked = Modifiers()
    carries = False
    for word in (part.strip(",") for words in comment.split() for part in _MODIFIER_COMMA.split(words)):
        found = _MODIFIER.fullmatch(word)
        if not found:
            continue
        carries = True
        key, value = found.groups()
        if key == "length":
            number = _LENGTH.fullmatch(value)
            if not number or int(number[1]) > _LONGEST_SECRET:
                raise EnvironmentProblem(
                    f"{_short(name)}: invalid length {_short(value)}: write a number from 1 to {_LONGEST_SECRET}, like length=64."
                )
            asked = replace(asked, length=int(number[1]))
        elif key == "charset":
            try:
                alphabet(value)
            except EnvironmentProblem as problem:
                raise EnvironmentProblem(f"{_short(name)}: {problem}") from None
            asked = replace(asked, charset=value)
        elif value in ("true", "false"):
            asked = replace(asked, generate=value == "true")
        else:
            raise EnvironmentProblem(f"{_short(name)}: invalid generate={_short(value)}: write generate=true or generate=false.")
    return asked if carries else None


def _example_prefixes(recipe: str, sample: Mapping[str, _Assignment]) -> list[str]:
    """The prefixes of `example.com` in names that stand for the run's domain, longest first."""
    prefixes = {f"{recipe}."} if recipe else set()
    kind, own = sample.get("TYPE"), sample.get("DOMAIN")
    if kind and _RECIPE_NAME.fullmatch(name := kind.text.partition(":")[0].strip(_BLANK)):
        prefixes.add(f"{name}.")
    if own and (found := _EXAMPLE_DOMAIN.fullmatch(own.text.strip(_BLANK))):
        prefixes.add(found[1])
    return sorted(prefixes, key=len, reverse=True)


def _with_domain(text: str, prefixes: Sequence[str], domain: str) -> str:
    if not prefixes or "example.com" not in text:
        return text
    pieces: list[str] = []
    done = 0
    for example in _EXAMPLE_END.finditer(text):
        for prefix in prefixes:
            start = example.start() - len(prefix)
            if start >= done and text.startswith(prefix, start) and not _inside_name(text, start):
                pieces += [text[done:start], domain]
                done = example.end()
                break
    return "".join([*pieces, text[done:]])


def _inside_name(text: str, start: int) -> bool:
    """Whether a host name continues to the left of `start`. The hyphen of `${X:-pad.example.com}` is not part of one."""
    before = text[start - 1 : start]
    if before == "-":
        return not _DEFAULT_OPENED.search(text[max(0, start - 100) : start])
    return before.isalnum() or before == "_"


def _exported(line: str) -> Iterator[tuple[str, str]]:
    """The literal assignments that a line of abra.sh exports. Anything that a shell would have to evaluate is skipped."""
    at = 0
    while command := _EXPORT.match(line, at):
        at = _end_of(_SHELL_BLANKS, line, command.end())
        while at < len(line) and line[at] not in _WORD_ENDS:
            if line[at] == "#":
                return
            word, at = _shell_word(line, at)
            name, equals, value = (word or "").partition("=")
            if equals and _IS_NAME.fullmatch(name):
                yield name, value
            at = _end_of(_SHELL_BLANKS, line, at)
        following = _NEXT_COMMAND.match(line, at)
        if not following:
            return
        at = following.end()


def _shell_word(line: str, at: int) -> tuple[str | None, int]:
    """The shell word at this position, or None if it is not a plain literal; and its end."""
    pieces: list[str] = []
    closers: list[str] = []  # what closes the quotes and substitutions that are open
    plain = True
    while at < len(line):
        character = line[at]
        inside = closers[-1] if closers else ""
        if not inside and character in _WORD_ENDS:
            break
        at += 1
        if character == inside:
            closers.pop()
        elif character == "'" and inside != '"':
            end = line.find("'", at)
            if end < 0:
                return None, len(line)
            pieces.append(line[at:end])
            at = end + 1
        elif character == '"':
            closers.append('"')
        elif character == "(" and inside == ")":
            closers.append(")")
        elif character in "$`\\":
            plain = False
            if character == "`":
                closers.append("`")
            elif character == "\\":
                at += 1
            elif line[at : at + 1] in ("(", "{"):
                closers.append(")" if line[at] == "(" else "}")
                at += 1
        else:
            start, at = at - 1, _end_of(_PLAIN_INSIDE if inside else _PLAIN_WORD, line, at - 1)
            pieces.append(line[start:at])
    word = "".join(pieces)
    more = closers or line[at : at + 1] in ("(", "<", ">")  # an array, a process substitution, a redirection
    return (word if plain and not more and "$" not in word and "`" not in word else None), at


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """The end of the pattern's match at this position; the position itself if there is none."""
    found = pattern.match(text, at)
    return found.end() if found else at


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _short(text: str) -> str:
    """The beginning of an untrusted text, on one line, for a message."""
    shown = "".join(character if character.isprintable() else " " for character in text[:60]).rstrip()
    return f'"{shown}{"…" if len(text) > 60 else ""}"'


class Filling:
    """Expands variables in the values of a compose file, within a limit on their total length."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._left = _LONGEST_TOGETHER

    def fill(self, text: str) -> str:
        """A value with its variables expanded, in the syntax that the sample supports; `$$` is a dollar.

        Raises EnvironmentProblem if it becomes too long.
        """
        if "$" not in text and "\\" not in text:
            return text
        pieces: list[str] = []
        for part in text.split("$$"):
            pieces += ["$", *_filled_in(part, "", self._values)]
        length = sum(map(len, pieces)) - 1
        self._left -= length
        if length > _LONGEST_VALUE or self._left < 0:
            most = _LONGEST_VALUE if length > _LONGEST_VALUE else _LONGEST_TOGETHER
            raise EnvironmentProblem(f"with its variables filled in, {_short(text)} is longer than {most:,} characters.")
        return "".join(pieces[1:])
