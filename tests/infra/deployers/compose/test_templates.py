"""Which Go templates Docker's daemon may be given."""

from __future__ import annotations

import time

import pytest

from infra.deployers.compose.templates import LONGEST, TooMuch, check


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no { { } } template",
        '{{ env "DOMAIN" }} {{secret `db_password`}} {{ config "a" }}',
        '{{ (env "LETS_ENCRYPT_DNS_CHALLENGE_PROVIDER") }}',
        '{{ if eq (env "OVH_ENABLED") "1" }}a{{ else if (env "X") }}b{{else}}c{{ end }}',
        '{{- if and (ne (env "A") "1" "2") (not (or (secret "b") (env "C"))) -}}\n{{- end }}',
        '{{ or (env "MAX_UPLOAD") "50m" }}',
        '{{/* a * note {{ range }} */}}{{- /* another */ -}}{{ "{{" }}{{ `}}` }}{{ "\\"}}" }}',
        "{{.Node.Hostname}}-{{ .Task.Slot }}-{{.Service.Name}}-{{.Node.Platform.OS}}",
        '{{.Task.Name}}.{{index .Service.Labels "com.docker.stack.namespace"}}_default',
        '{{ eq\n\t(env "A")\r\n"1" }}',
        '{{if "x"}}' * 50 + "{{end}}" * 50,
    ],
)
def test_what_recipes_write(text: str) -> None:
    check(text, {})


@pytest.mark.parametrize(
    "action",
    [
        *("{{", "{{}}", "{{{.Node.ID}}}", "{{ . }}", "{{ $ }}", "{{ 1 }}", "{{ nil }}", "{{-.Node.ID}}", "{{.Node.ID - }}"),
        *('{{.Expand "x"}}', "{{.Service.Name.Expand}}", "{{.Service}}", "{{.Service.Labels}}", '{{index .Service.Labels "a"}}'),
        *('{{$a := "x"}}', "{{ $a = print $a $a }}", '{{define "x"}}', '{{template "x"}}', '{{block "x" .}}'),
        *("{{range .Service.Labels}}", '{{with env "X"}}', "{{break}}", "{{end x}}", '{{else with "x"}}'),
        *('{{pad "x" 1000000000000 0}}', '{{printf "%999999999d" 1}}', '{{print "x"}}', '{{join "a" "b"}}', '{{len "x"}}'),
        *('{{html "x"}}', '{{js "x"}}', '{{urlquery "x"}}', '{{slice "x" 0}}', '{{call "x"}}', '{{index "x" 0}}'),
        *('{{env "X" | print}}', '{{env (env "X")}}', "{{env .Node.ID}}", '{{"a" "b"}}', "{{eq 1 1}}", '{{eq (env "X" }}'),
        *('{{eq (print "x") "x"}}', '{{if (eq (or (printf "x")) "x")}}', "{{/* a */ range}}*/}}", "{{ /* a */}}", '{{"\n"}}'),
        *("{{" + "(" * 51 + '"x"' + ")" * 51 + "}}", '{{if "x"}}' * 51, '{{if "x"}}' + '{{else if "x"}}' * 50),
        "x" * (LONGEST + 1),
    ],
)
def test_whatever_else_there_is(action: str) -> None:
    with pytest.raises(TooMuch):
        check(action, {})
    with pytest.raises(TooMuch):
        check(f'{{{{ env "A" }}}}{{{{ /* {action}', {})


def test_the_line_is_that_of_the_action() -> None:
    with pytest.raises(TooMuch) as caught:
        check('a\n{{ env "A" }}\n\n  {{ range }}', {})
    assert caught.value.line == 4


def test_what_is_looked_up_counts_each_time() -> None:
    text = '{{ if config "a" }}{{ config "a" }}{{ end }}'
    check(text, {"config": (LONGEST - len(text)) // 2})
    for longest in ({"config": LONGEST // 2}, {"env": LONGEST, "config": LONGEST}):
        with pytest.raises(TooMuch, match="more than a megabyte once it is filled in"):
            check(text, longest)


@pytest.mark.parametrize("text", ['{{"a"}}', "{{((", "{{/*", '{{if "x"}}{{end}}', "{{end}}", '{{ eq "a" ', "{{ ", "{{`", "{{\t-"])
def test_it_is_read_in_no_time(text: str) -> None:
    for hostile in (text * (LONGEST // len(text)), text + text[-1] * LONGEST):
        start = time.process_time()
        try:
            check(hostile[:LONGEST], {})
        except TooMuch:
            pass
        assert time.process_time() - start < 100
