"""The environment for a recipe's compose files: the sample, abra.sh, what is added, and what is fixed."""

from __future__ import annotations

import string
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.deployers.compose.environment import Environment, EnvironmentProblem, Modifiers, alphabet, build

RUN = "run1.ci.example.org"
FIXED = {"DOMAIN": RUN, "STACK_NAME": "run1_ci"}
MEGABYTE = 1 << 20


def built(sample: str = "", exports: str = "", *added: Mapping[str, str], fixed: Mapping[str, str] = FIXED) -> Environment:
    groups = [(f"[env.{number}] in cc-ci.toml", values) for number, values in enumerate(added, 1)]
    return build(sample=sample, exports=exports, recipe="pad", fixed=fixed, added=groups)


def read(sample: str = "", exports: str = "", *added: Mapping[str, str]) -> dict[str, str]:
    """What comes on top of the fixed variables."""
    return {name: value for name, value in built(sample, exports, *added).values.items() if name not in FIXED}


@pytest.mark.parametrize(
    ("sample", "values"),
    [
        pytest.param("", {}, id="nothing"),
        pytest.param("A=1\nB=2", {"A": "1", "B": "2"}, id="no newline at the end"),
        pytest.param("\n\n  A=1\n\t\nB=2\n\n", {"A": "1", "B": "2"}, id="empty lines and indentation"),
        pytest.param("# A=1\n  #B=2\n#", {}, id="comment lines"),
        pytest.param("A=1\nA=2", {"A": "2"}, id="the last line wins"),
        pytest.param("A=\nB= \nC=''\nD=\"\"", {"A": "", "B": "", "C": "", "D": ""}, id="empty values"),
        pytest.param("export A=1\nexport\tB=2", {"A": "1", "B": "2"}, id="export"),
        pytest.param("exportA=1\nexport=2", {"exportA": "1", "export": "2"}, id="names that begin with export"),
        pytest.param("export A=1 B=2", {"A": "1 B=2"}, id="export takes one variable"),
        pytest.param("A = 1\nB\t=\t2\nC= '3'", {"A": "1", "B": "2", "C": "3"}, id="blanks around ="),
        pytest.param("A: 1\nB:2\nC: 'x: y'\nD:E=1", {"A": "1", "B": "2", "C": "x: y", "D": "E=1"}, id="YAML style"),
        pytest.param("a_1=1\n_B=2", {"a_1": "1", "_B": "2"}, id="names"),
        pytest.param("A=b c=d e", {"A": "b c=d e"}, id="blanks and = in a bare value"),
        pytest.param('A=it\'s "so"', {"A": 'it\'s "so"'}, id="quotes inside a bare value"),
        pytest.param("\ufeffA=1", {"A": "1"}, id="a byte order mark"),
        pytest.param("A=1\r\n\r\nB='x\r\ny'\r\n", {"A": "1", "B": "x\ny"}, id="CRLF"),
        pytest.param("A=1\rB=2", {"A": "1", "B": "2"}, id="a lone carriage return ends a bare value"),
        pytest.param("A='1' B=\"2\" C=3", {"A": "1", "B": "2", "C": "3"}, id="assignments behind a closing quote"),
        pytest.param("A=é€😀", {"A": "é€😀"}, id="not only ASCII"),
    ],
)
def test_lines(sample: str, values: dict[str, str]) -> None:
    assert read(sample) == values


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1 # comment", "1"),
        ("1\t# comment", "1"),
        ("1 #", "1"),
        (" # comment", ""),
        ("1#2", "1#2"),
        ("#1", "#1"),
        ("1 # two # three", "1"),
        ("'1 # 2' # comment", "1 # 2"),
        ("'1'# comment", "1"),
        ('"1 # 2" # "comment"', "1 # 2"),
        ('"#1"', "#1"),
    ],
)
def test_comments(written: str, value: str) -> None:
    assert read(f"A={written}\nB=end") == {"A": value, "B": "end"}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        # in double quotes
        (r'"say \"hi\""', 'say "hi"'),
        (r'"a\\b"', r"a\b"),
        (r'"a\\"', "a\\"),
        (r'"a\nb\rc"', "a\nb\rc"),
        (r'"a\\nb"', r"a\nb"),
        (r'"\$X \${X} \\$X"', "$X ${X} \\ex"),
        (r'"a\tb\d"', "atbd"),
        ('"two\nlines"', "two\nlines"),
        ('"  kept  "', "  kept  "),
        ('"it\'s"', "it's"),
        # in single quotes
        (r"'a\nb \\ $X ${X:-d}'", r"a\nb \\ $X ${X:-d}"),
        ("'two\nlines'", "two\nlines"),
        ("'say \"hi\"'", 'say "hi"'),
        (r"'it\'s'", r"it\'s"),
        # bare
        (r"a\nb\\c\"d", r"a\nb\\c\"d"),
        (r"\$X \${X} \\$X", r"$X ${X} \$X"),
    ],
)
def test_quotes_and_escapes(written: str, value: str) -> None:
    assert read(f"X=ex\nA={written}\nB=end") == {"X": "ex", "A": value, "B": "end"}


REFERENCES = [
    ("$X", "ex"),
    ("${X}", "ex"),
    ("a${X}b$X.c", "aexbex.c"),
    ("$Xy", "why"),
    ("$x", "small"),
    ("[$UNSET|${UNSET}|$EMPTY]", "[||]"),
    ("${X:-d} ${UNSET:-d} ${EMPTY:-d}", "ex d d"),
    ("${X-d} ${UNSET-d} [${EMPTY-d}]", "ex d []"),
    ("[${UNSET:-}${UNSET-}]", "[]"),
    ("${UNSET:-a:b-c /d}", "a:b-c /d"),
    ("${UNSET:-$X}", "ex"),
    ("${UNSET:-https://${UNSET:-${X}}/y}/z", "https://ex/y/z"),
    ("${X:-${UNSET:-lost}}", "ex"),
    (r"${UNSET:-\$X}", "$X"),
    ("$$X", "$ex"),
    ("$ $1 $2y$10$. $-", "$ $1 $2y$10$. $-"),
    ("$(X) $(date) `date`", "$(X) $(date) `date`"),
    ("{$X} {${X}} }", "{ex} {ex} }"),
    ("${ ${} ${1} ${X ${-d}", "${ ${} ${1} ${X ${-d}"),
    ("${X:?e} ${X:+y} ${X!}", "${X:?e} ${X:+y} ${X!}"),
    ("a ${UNSET:-b $X", "a ${UNSET:-b ex"),
    ("${X:-${UNSET:-d}", "${X:-d"),
]


@pytest.mark.parametrize(("written", "value"), REFERENCES)
def test_references(written: str, value: str) -> None:
    sample = "X=ex\nXy=why\nx=small\nEMPTY=\n"
    assert read(f"{sample}A={written}")["A"] == value
    assert read(f'{sample}A="{written}"')["A"] == value
    assert read(f"{sample}A='{written}'")["A"] == written
    assert read(sample, "", {"A": written})["A"] == value


def test_only_earlier_lines_count() -> None:
    assert read("A=[$B]\nB=1\nB=$B$B\nC=$B")["A"] == "[]"
    assert read("A=[$B]\nB=1\nB=$B$B\nC=$B")["C"] == "11"


def test_a_value_is_filled_in_once() -> None:
    assert read("A='$B'\nB=1\nC=$A") == {"A": "$B", "B": "1", "C": "$B"}


def test_overlays_are_chosen_line_by_line() -> None:
    sample = (
        'COMPOSE_FILE="compose.yml"\nCOMPOSE_FILE="$COMPOSE_FILE:compose.more.yml"\n#COMPOSE_FILE="$COMPOSE_FILE:compose.off.yml"'
    )
    assert read(sample) == {"COMPOSE_FILE": "compose.yml:compose.more.yml"}


def test_the_environment_of_this_process_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING", "leaked")
    assert read("A=[$SOMETHING]${SOMETHING:-d}", "", {"B": "[$SOMETHING]"}) == {"A": "[]d", "B": "[]"}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ('A=1\nB="x\nC=1', '.env.sample:2: unclosed double quote in the value of "B". Write " at the end of the value.'),
        ("\n\nA='x\n\n", '.env.sample:3: unclosed single quote in the value of "A". Write \' at the end of the value.'),
        (r'A="x\"', '.env.sample:1: unclosed double quote in the value of "A". Write " at the end of the value.'),
        (
            'A="x\nB="y"',
            '.env.sample:2: unexpected text "y"" after the closing quote of "A" (line 1). '
            "Put the whole value inside the quotes, or begin a comment with #.",
        ),
        (
            "A='x'.y",
            '.env.sample:1: unexpected text ".y" after the closing quote of "A" (line 1). '
            "Put the whole value inside the quotes, or begin a comment with #.",
        ),
        (
            "A=1\n\nsome prose\nB=2",
            '.env.sample:3: "some prose" is not an assignment. Write NAME=value, or put # before a comment.',
        ),
        ("A", '.env.sample:1: "A" is not an assignment. Write NAME=value, or put # before a comment.'),
        ("A='x'\nB", '.env.sample:2: "B" is not an assignment. Write NAME=value, or put # before a comment.'),
        ("export A", '.env.sample:1: "export A" is not an assignment. Write NAME=value, or put # before a comment.'),
        ("A B=1", '.env.sample:1: "A B=1" is not an assignment. Write NAME=value, or put # before a comment.'),
        ("=1", '.env.sample:1: "=1" is not an assignment. Write NAME=value, or put # before a comment.'),
        (
            "A='1\n2'\r\nexport MY-VAR=1",
            '.env.sample:3: invalid variable name "MY-VAR". '
            "Use only the letters A-Z and a-z, digits and underscores, and do not start with a digit.",
        ),
        ("1A=1", 'invalid variable name "1A"'),
        ("A.B: 1", 'invalid variable name "A.B"'),
        ("Ä=1", 'invalid variable name "Ä"'),
        ("A=1\x002", '.env.sample:1: the value of "A" contains a NUL character. Remove it.'),
        ("x" * 1000, '"' + "x" * 60 + '…" is not an assignment'),
        ("\x1b[31m\x07", '" [31m" is not an assignment'),
    ],
)
def test_what_cannot_be_read(sample: str, message: str) -> None:
    with pytest.raises(EnvironmentProblem) as problem:
        read(sample)
    assert message in str(problem.value)


def test_a_problem_names_the_file_that_was_read() -> None:
    with pytest.raises(EnvironmentProblem, match=r"^\.env:1: "):
        build(sample="?", exports="", recipe="pad", fixed=FIXED, sample_name=".env")


def test_fixed_variables_hold_from_the_first_line_on_and_are_never_changed() -> None:
    fixed = {**FIXED, "LETS_ENCRYPT_ENV": "", "OIDC_ID": "lent"}
    sample = (
        "A=$DOMAIN $OIDC_ID\nDOMAIN=other.org\nLETS_ENCRYPT_ENV=production\nOIDC_ID=\nSTACK_NAME=x$STACK_NAME\n"
        "B=$DOMAIN [$LETS_ENCRYPT_ENV] $OIDC_ID $STACK_NAME"
    )
    environment = built(
        sample, "export OIDC_ID=mine DOMAIN=abra.org", {"DOMAIN": "toml.org", "OIDC_ID": "$OIDC_ID!"}, fixed=fixed
    )
    assert environment.values == {**fixed, "A": f"{RUN} lent", "B": f"{RUN} [] lent run1_ci"}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("pad.example.com", RUN),
        ("sandbox.pad.example.com", f"sandbox.{RUN}"),
        ("https://pad.example.com/x", f"https://{RUN}/x"),
        ("me@pad.example.com", f"me@{RUN}"),
        ("'pad.example.com'", RUN),
        ('"Host(`pad.example.com`,`www.pad.example.com`)"', f"Host(`{RUN}`,`www.{RUN}`)"),
        ("pad.example.com:443,pad.example.com.", f"{RUN}:443,{RUN}."),
        ("${UNSET:-pad.example.com}${UNSET-pad.example.com}", RUN * 2),
        ("${U}-pad.example.com", "-pad.example.com"),
        ("mypad.example.com", "mypad.example.com"),
        ("my-pad.example.com", "my-pad.example.com"),
        ("2pad.example.com", "2pad.example.com"),
        ("épad.example.com", "épad.example.com"),
        ("pad.example.com.org", "pad.example.com.org"),
        ("pad.example.community", "pad.example.community"),
        ("pad.example.com-x", "pad.example.com-x"),
        ("pad.example.com2", "pad.example.com2"),
        ("pad.example.org", "pad.example.org"),
        ("PAD.example.com", "PAD.example.com"),
        ("pad-example.com", "pad-example.com"),
        ("other.example.com example.com", "other.example.com example.com"),
    ],
)
def test_the_sample_domain(written: str, value: str) -> None:
    assert read(f"A={written}")["A"] == value
    assert read("", "", {"A": written.strip("'\"")})["A"] == value


@pytest.mark.parametrize(
    ("line", "written", "value"),
    [
        ("TYPE=cryptpad", "cryptpad.example.com", RUN),
        ("TYPE=cryptpad:1.0.0+v2", "sandbox.cryptpad.example.com", f"sandbox.{RUN}"),
        ("TYPE='cryptpad' # a comment", "pad.example.com cryptpad.example.com", f"{RUN} {RUN}"),
        ("TYPE=$X", "cryptpad.example.com", "cryptpad.example.com"),
        ("TYPE=.*", "x.example.com", "x.example.com"),
        ("DOMAIN=docs.example.com", "api.docs.example.com", f"api.{RUN}"),
        ("DOMAIN=my.docs.example.com", "my.docs.example.com docs.example.com", f"{RUN} docs.example.com"),
        ("DOMAIN=example.com", "example.com mail.example.com me@example.com", f"{RUN} mail.{RUN} me@{RUN}"),
        ("DOMAIN=example.com", "pad.example.com", RUN),
        ("DOMAIN=docs.example.org", "docs.example.org", "docs.example.org"),
        ("DOMAIN=docs.notexample.com", "docs.notexample.com", "docs.notexample.com"),
        ("DOMAIN=${X}.example.com", "docs.example.com", "docs.example.com"),
        ("#DOMAIN=docs.example.com", "docs.example.com", "docs.example.com"),
    ],
)
def test_the_sample_domain_by_its_own_lines(line: str, written: str, value: str) -> None:
    for sample in (f"{line}\nA={written}", f"A={written}\n{line}"):
        assert read(sample)["A"] == value
    assert read(line, "", {"A": written})["A"] == value


def test_the_runs_domain_may_look_like_a_sample() -> None:
    fixed = {"DOMAIN": "run.pad.example.com"}
    values = built("A=pad.example.com\nB=$A", "", {"C": "$A x.pad.example.com"}, fixed=fixed).values
    assert values == {
        **fixed,
        "A": "run.pad.example.com",
        "B": "run.pad.example.com",
        "C": "run.pad.example.com x.run.pad.example.com",
    }


def test_abra_sh_is_left_as_it_is_by_the_domain() -> None:
    assert read("", "export A=pad.example.com") == {"A": "pad.example.com"}


@pytest.mark.parametrize(
    ("exports", "values"),
    [
        ("export A_VERSION=v1", {"A_VERSION": "v1"}),
        ("export A_VERSION=v1 B_VERSION='v2' C=\"v3\" # comment D=4", {"A_VERSION": "v1", "B_VERSION": "v2", "C": "v3"}),
        ("export A=1; export B=2;export C=3 && export D=4", {"A": "1", "B": "2", "C": "3", "D": "4"}),
        ("  export\tA=1\n\texport B=2\r\n", {"A": "1", "B": "2"}),
        ("\ufeffexport A=1", {"A": "1"}),
        ("export A=1\nexport A=2", {"A": "2"}),
        ("export A= B='' C=\"\"", {"A": "", "B": "", "C": ""}),
        ("export a1=x _b=y", {"a1": "x", "_b": "y"}),
        ("export A='x y; z' B=\"p # q\" C=x#y", {"A": "x y; z", "B": "p # q", "C": "x#y"}),
        ("export A=x'y'\"z\" 'B=1 2'", {"A": "xyz", "B": "1 2"}),
        ("export A='it\"s' B=\"it's\"", {"A": 'it"s', "B": "it's"}),
        ("export A=v1.2+3-x/y:z@{1}", {"A": "v1.2+3-x/y:z@{1}"}),
        ("f() {\n  export A=1\n}", {"A": "1"}),
        # only lines that begin with export, and only assignments
        ("A=1\n#export B=1\necho export C=1\nf() { export D=1; }\nexportE=1\ntrue && export F=1", {}),
        ("export\nexport \nexport A\nexport -p\nexport A+=1 2B=1 C-D=1 =1", {}),
        ("export A=1; echo B=2; export C=3", {"A": "1"}),
        ("export A=1 | export B=2", {"A": "1"}),
        ("export A=1 || export A=2", {"A": "1"}),
        ("export A=1 > B=2", {"A": "1"}),
        ("export D=1 A=(1 B=2) C=3", {"D": "1"}),
        ("export D=1 A=<(f B=2) C=3", {"D": "1"}),
        # what a shell would have to work out
        ("export A=$B C=1", {"C": "1"}),
        ("export A=${B:-x y} C=1", {"C": "1"}),
        ("export A=\"$B\" C='$B' D=1", {"D": "1"}),
        ("export A=$(date B=2) C=1", {"C": "1"}),
        ("export A=$(f $(g B=2) (B=3)) C=1", {"C": "1"}),
        ('export A="$(f " B=2 ")" C=1', {"C": "1"}),
        ("export A=$(echo ')' B=2) C=1", {"C": "1"}),
        ("export A=`date B=2` C=1; export D=2", {"C": "1", "D": "2"}),
        ('export A="`date`" C=1', {"C": "1"}),
        ("export A=x\\ B=2 C=1", {"C": "1"}),
        ('export A="x\\" B=2" C=1', {"C": "1"}),
        ("export C=1 A=x\\\n  B=2", {"C": "1"}),
        # what does not end on its line
        ("export C=1 A='x\nB=2'", {"C": "1"}),
        ('export C=1 A="x\nexport D=2', {"C": "1", "D": "2"}),
        ("export C=1 A=$(date B=2", {"C": "1"}),
    ],
)
def test_what_abra_sh_exports(exports: str, values: dict[str, str]) -> None:
    assert read("", exports) == values


def test_the_layers() -> None:
    sample = "A=sample\nB=sample\nC=sample\nSEEN=[$A][$V]"
    values = read(sample, "export A=abra B=abra V=v1", {"A": "env", "E": "$A $B $C $V"}, {"A": "upgrade", "F": "$A"})
    assert values == {
        "A": "upgrade",
        "B": "abra",
        "C": "sample",
        "V": "v1",
        "SEEN": "[sample][]",
        "E": "env abra sample v1",
        "F": "upgrade",
    }


def test_added_values_see_their_own_older_value() -> None:
    sample = "COMPOSE_FILE=compose.yml"
    values = read(sample, "", {"COMPOSE_FILE": "$COMPOSE_FILE:compose.a.yml"}, {"COMPOSE_FILE": "${COMPOSE_FILE}:compose.b.yml"})
    assert values == {"COMPOSE_FILE": "compose.yml:compose.a.yml:compose.b.yml"}


def test_added_values_know_no_other_escape_no_quotes_and_no_comments() -> None:
    written = r""" "\n\\\"\$X" # 'x' """
    assert read("X=ex", "", {"A": written})["A"] == r""" "\n\\\"$X" # 'x' """


@pytest.mark.parametrize("name", ["", "A B", "1A", "A-B", "A.B", "Ä", "A\n"])
def test_names_of_added_variables(name: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r"^\[env\.2\] in cc-ci\.toml: invalid variable name "):
        read("", "", {}, {name: "1"})


SECRET = "SECRET_DB_PASSWORD_VERSION"


@pytest.mark.parametrize(
    ("comment", "modifiers"),
    [
        ("length=64", Modifiers(64)),
        ("length=64 charset=hex generate=false", Modifiers(64, "hex", False)),
        ("generate=false,charset=hex,length=64", Modifiers(64, "hex", False)),
        ("charset=default,special", Modifiers(charset="default,special")),
        ("charset=default,special,length=5", Modifiers(5, "default,special")),
        ("charset=safespecial, length=5,\tgenerate=true,", Modifiers(5, "safespecial")),
        ("charset=", Modifiers()),
        ("the key, length=1 please, # charset=hex", Modifiers(1, "hex")),
        ("length=4096", Modifiers(4096)),
        ("length=016", Modifiers(16)),
        ("length=5 length=6", Modifiers(6)),
        ("", None),
        ("a password of length 64", None),
        ("length = 64; minlength=x Length=64 other=1 mylength=0", None),
    ],
)
@pytest.mark.parametrize("value", ["v1 # ", "v1 #", "'v1' # ", '"v1"#', " # "])
def test_modifiers(value: str, comment: str, modifiers: Modifiers | None) -> None:
    environment = built(f"{SECRET}={value}{comment}\nB=end")
    assert environment.modifiers == ({SECRET: modifiers} if modifiers else {})
    assert environment.values["B"] == "end"


@pytest.mark.parametrize("length", ["0", "4097", "99999", "9" * 5000, "-1", "+1", "x", "", "6.5", "1e3", "٣", "64."])
def test_lengths_out_of_range(length: str) -> None:
    with pytest.raises(EnvironmentProblem, match=f'^.env.sample:2: "{SECRET}": invalid length ".*from 1 to 4096'):
        built(f"A=1\n{SECRET}=v1 # length={length}")


@pytest.mark.parametrize("charset", ["letters", "HEX", "default,", "default,,hex", "default,letters", ",hex", "hex;"])
def test_unknown_charsets(charset: str) -> None:
    known = "use default, special, safespecial, hex, or several of them joined by commas"
    with pytest.raises(EnvironmentProblem, match=f'^unknown charset ".*": {known}'):
        alphabet(charset)
    if not charset.endswith(","):
        with pytest.raises(EnvironmentProblem, match=f'^.env.sample:1: "{SECRET}": unknown charset ".*": {known}'):
            built(f"{SECRET}=v1 # charset={charset}")


@pytest.mark.parametrize("generate", ["no", "", "0", "False", "true;"])
def test_generate_is_true_or_false(generate: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r'invalid generate=".*": write generate=true or generate=false'):
        built(f"{SECRET}=v1 # generate={generate}")


@pytest.mark.parametrize("line", ["A=1", "SECRET_A=1", "A_VERSION=v1", "MY_SECRET_A_VERSION=v1", "#SECRET_A_VERSION=v1", "#"])
def test_modifiers_in_other_lines_are_prose(line: str) -> None:
    assert built(f"{line} # length=0 charset=none generate=maybe").modifiers == {}
    assert built(f"{line} # length=5").modifiers == {}


def test_modifiers_are_of_the_last_line_that_carries_some() -> None:
    assert built(f"{SECRET}=v1 # length=5 charset=hex\n{SECRET}=v2 # length=6\n{SECRET}=v3").modifiers == {SECRET: Modifiers(6)}


def test_modifiers_of_a_fixed_version_count() -> None:
    environment = built(f"{SECRET}=v1 # generate=false", fixed={SECRET: "v7"})
    assert (environment.values, environment.modifiers) == ({SECRET: "v7"}, {SECRET: Modifiers(generate=False)})


def test_no_other_file_carries_modifiers() -> None:
    assert built("", f"export {SECRET}=v1 # length=5", {SECRET: "v1 # length=5"}).modifiers == {}


def test_modifiers_follow_a_value_over_several_lines() -> None:
    assert built(f"{SECRET}='v\n1' # length=5").modifiers == {SECRET: Modifiers(5)}


LETTERS_AND_DIGITS = set(string.ascii_letters + string.digits)


@pytest.mark.parametrize(
    ("charset", "characters"),
    [
        ("", LETTERS_AND_DIGITS),
        ("default", LETTERS_AND_DIGITS),
        ("special", set("!@#$%^&*_-+=")),
        ("safespecial", set("!@#%^&*_-+=")),
        ("hex", set("0123456789abcdef")),
        ("default,special", LETTERS_AND_DIGITS | set("!@#$%^&*_-+=")),
        ("hex,default,hex", LETTERS_AND_DIGITS),
    ],
)
def test_alphabets(charset: str, characters: set[str]) -> None:
    assert set(alphabet(charset)) == characters
    assert len(alphabet(charset)) == len(characters)


def test_the_longest_value() -> None:
    assert read("A=" + "x" * 100_000)["A"] == "x" * 100_000
    assert read("", "export A=" + "x" * 100_000)["A"] == "x" * 100_000
    for sample, exports, added, where in [
        ("A=" + "x" * 100_001, "", {}, r"\.env\.sample:1"),
        ("A=x\n" + "A=$A$A\n" * 30, "", {}, r"\.env\.sample:18"),
        ("", "\nexport A=" + "x" * 100_001, {}, r"abra\.sh:2"),
        ("", "", {"A": "x" * 100_001}, r"\[env\.1\] in cc-ci\.toml"),
    ]:
        with pytest.raises(EnvironmentProblem, match=f'^{where}: the value of "A" is longer than 100,000 characters'):
            built(sample, exports, added)


def test_all_values_together() -> None:
    ten = "".join(f"A{number}={'x' * 99_990}\n" for number in range(10))
    assert len(read(ten)) == 10
    message = 'with "B" all values together are longer than 1,000,000 characters'
    for sample, exports, added in [(f"{ten}B=$A1", "", {}), (ten, f"export B={'x' * 100}", {}), (ten, "", {"B": "$A1"})]:
        with pytest.raises(EnvironmentProblem, match=message):
            built(sample, exports, added)
    with pytest.raises(EnvironmentProblem, match='with "A" all values together'):  # replaced values count as well
        built("B=" + "x" * 90_000 + "\n" + "A=$B\n" * 20)


def test_a_default_that_is_not_needed_takes_no_room() -> None:
    assert read("B=" + "x" * 90_000 + "\nA=${B:-" + "$B" * 1000 + "}")["A"] == "x" * 90_000


@pytest.mark.parametrize("layer", ["abra.sh", "added"])
def test_no_nul_in_any_layer(layer: str) -> None:
    with pytest.raises(EnvironmentProblem, match='the value of "A" contains a NUL character'):
        _ = read("", "export A=x\0y") if layer == "abra.sh" else read("", "", {"A": "x\0y"})


#: To be repeated up to this size, after one of the beginnings.
NASTY = [
    *("$", "${", "${A", "${A:-", "${A:-x", "${A:-}", "$A", "$A}", "}", "$(", "$((", ")", "(", "`", "\\", "\\$"),
    *('"', "'", '\\"', "\\'", "'\"", "\"'", '"$(', '"`', "`'", " ", "\t", "\r", "\n", "\r\n", "\u2028", "\0", "\ufeff", "é"),
    *("#", " #", "\n#", "#\n", "=", ":", "A", "A ", "A=", "A=\n", 'A=""', "A='' ", "A=$A\n", "A=x$B\n", "A='\n", 'A="\n"'),
    *("export", "export ", "export\n", "export A=1 ", "export A=1;", "export A='1'\n", "&&", ";"),
    *("-", ".", "a.", "example.com", "pad.example.com ", "a.example.com", "-pad.example.com "),
    *("TYPE=a\n", "DOMAIN=a.example.com\n"),
    *("length=1 ", "length=1,", "charset=hex,", "charset=hex ", "hex,", ",", ",a", "0", "SECRET_A_VERSION=v1 # length=2\n"),
]
QUICK = ["$", "${", "${A:-x", '"', "'", "\\", "`", '"$(', " ", "\n", "\0", " #", "A=x$B\n", "export A=1;", "pad.example.com "]
SAMPLES = ["", "B=" + "y" * 50_000 + "\nA=", 'A=1\nA="', "A='", "TYPE=", "DOMAIN=example.com\nA=", "SECRET_"]
SAMPLES += [f"{SECRET}=v1 # {modifier}" for modifier in ("", "charset=", "length=")]
EXPORTS = ["", "export ", "export A=", 'export A="', "export A='", "export A=$(", "export A=`"]


def ends(text: str, samples: list[str], exports: list[str], size: int) -> None:
    many = text * (size // len(text))
    cases: list[tuple[str, str, dict[str, str]]] = [("DOMAIN=example.com\nTYPE=a", "", {"A": many})]
    cases += [(beginning + many, "", {}) for beginning in samples]
    cases += [("", beginning + many, {}) for beginning in exports]
    for case in cases:
        try:
            values = built(*case).values
        except EnvironmentProblem as problem:
            assert len(str(problem)) < 400
        else:
            assert sum(map(len, values.values())) <= 1_000_000


@pytest.mark.parametrize("text", QUICK)
def test_a_quarter_of_a_megabyte_of_anything_ends(text: str) -> None:
    ends(text, SAMPLES[:3], EXPORTS[2:4], MEGABYTE // 4)


@pytest.mark.long
@pytest.mark.parametrize("text", NASTY)
def test_a_megabyte_of_anything_ends(text: str) -> None:
    ends(text, SAMPLES, EXPORTS, MEGABYTE)


pieces = st.lists(
    st.sampled_from([*"AX=: \t\n\r#'\"\\${}-()`;,", "export ", "${X", ":-", "\0", "é", "pad.example.com", "length=1", SECRET]),
    max_size=30,
).map("".join)


@given(pieces, pieces, st.dictionaries(st.sampled_from(["A", "X"]), pieces))
def test_any_text_is_an_environment_or_a_problem(sample: str, exports: str, values: dict[str, str]) -> None:
    try:
        environment = built(sample, exports, values)
    except EnvironmentProblem as problem:
        assert str(problem).startswith((".env.sample:", "abra.sh:", "[env.1] in cc-ci.toml: "))
        assert str(problem).isprintable()
    else:
        assert environment.values.items() >= FIXED.items()
