"""The format of DEFERRED.md: what is read, what is said about the rest, and that ticking a box touches nothing else."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runs.deferred.file_format import CannotTick, Document, Entry, decode, encode, name_of_test, parse, ports, tick
from runs.deferred.sources import patch

ROOT = Path(__file__).parents[2]
ODD = ROOT / "tests" / "data" / "deferred" / "odd.md"
SHIPPED = ROOT / "docs" / "examples" / "DEFERRED.md"
SHA = "0123456789abcdef0123456789abcdef01234567"


def read(path: Path) -> Document:
    return parse(decode(path.read_bytes()))


def one(text: str) -> Entry:
    (entry,) = parse(text).entries
    return entry


def test_the_shipped_entries() -> None:
    document = read(SHIPPED)
    assert not document.problems and not document.remarks
    assert [entry.slug for entry in document.entries] == [
        "matrix-synapse-compress-state",
        "matrix-synapse-complexity-limit",
        "matrix-synapse-purge",
    ]
    first = document.entries[0]
    assert (first.filed_on, first.ticked, first.section, first.line) == (date(2026, 5, 28), False, "open", 8)
    assert first.what.startswith("Port `compress_state.sh`") and first.what.endswith("must drop.")
    assert first.filed_by and first.why and first.trigger and not first.linked
    assert document.entries[2].linked == "run the functions of `abra.sh` from a test"


def test_an_odd_file_is_read_as_far_as_it_goes_and_the_rest_is_named_by_line() -> None:
    document = read(ODD)
    assert [(entry.slug, entry.section, entry.ticked) for entry in document.entries] == [
        ("ghost-create-a-post", "open", True),
        ("uptime_kuma: create a monitor", "open", False),
        ("cryptpad-create-a-pad", "closed", False),
    ]
    ghost, monitor, _ = document.entries
    assert ghost.what == "Create a post in ghost,\nwith a picture 🖼️."
    assert (ghost.closed_commit, ghost.closed_test) == (SHA, "tests/extra/test_post.py")
    assert (monitor.bullet, monitor.why) == ("* ", "no browser")
    lines = ODD.read_text().splitlines()
    assert [(lines[problem.line - 1][:30], problem.text[:22]) for problem in document.problems] == [
        ("### 2026-02-30 — no-such-day", "invalid date 2026-02-3"),
        ("### 2026-03-03 — no-box", "no-box has no box; exp"),
        ("- [?] **What:** x", "the box of odd-box con"),
        ("- [ ] **Filed by:** bob", "says-nothing lacks the"),
        ("### Some other heading", "`Some other heading` i"),
        ("### 2026-03-02 – uptime_kuma: ", "uptime_kuma: create a "),
    ]
    assert [remark.text.partition(":")[0] for remark in document.remarks if "the box counts" in remark.text] == [
        "ghost-create-a-post is under the open deferrals, but its box is ticked",
        "cryptpad-create-a-pad is under the closed deferrals, but its box is empty",
    ]
    assert any("`Colour` is an unknown field" in remark.text for remark in document.remarks)


@pytest.mark.parametrize("text", ["", "# Shopping\n\n- [ ] milk\n", "no markdown at all"])
def test_another_file_is_named_as_one(text: str) -> None:
    document = parse(text)
    assert not document.entries
    assert "is this the right file?" in document.problems[0].text


def test_an_empty_registry_is_no_problem() -> None:
    assert parse("## Open deferrals\n\n## Closed deferrals\n") == Document([], [], [])


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "end", ["", "{n}", "{n}{n}---{n}", "{n}{n}A paragraph.{n}", "{n}{n}### 2026-02-02 — b{n}- [ ] **What:** b{n}"]
)
def test_the_tick_is_one_character_and_one_line(newline: str, end: str) -> None:
    head = newline.join(["\ufeff## Open deferrals", "### 2026-01-01 — a", "- [ ] **What:** do", "  it", "- **Filed by:** me"])
    text = head + end.replace("{n}", newline)
    ticked = tick(text, (date(2026, 1, 1), "a"), SHA, "extra/test_a.py")
    added = f"{newline}- **Closed by:** {SHA} (extra/test_a.py)"
    assert ticked == head.replace("[ ]", "[x]") + added + end.replace("{n}", newline)
    entry = parse(ticked).entries[0]
    assert (entry.ticked, entry.closed_commit, entry.closed_test) == (True, SHA, "extra/test_a.py")


def test_code_that_belongs_to_the_last_point_stays_with_it() -> None:
    text = "### 2026-01-01 — a\n- [ ] **What:** run\n\n  ```\n  - [ ] not this box\n  ```\n\n## Closed deferrals\n"
    ticked = tick(text, (date(2026, 1, 1), "a"), SHA, "t.py")
    assert ticked.startswith("### 2026-01-01 — a\n- [x] **What:** run\n\n  ```\n  - [ ] not this box\n  ```\n- **Closed by:**")


def test_a_heading_may_be_closed_and_a_slug_may_end_in_a_hash() -> None:
    assert one("## Open deferrals ##\n### 2026-01-01 — write-c# ###\n- [ ] **What:** a\n").slug == "write-c#"
    assert one("### 2026-01-01 — write-c#\n- [ ] **What:** a\n").slug == "write-c#"


def test_what_cannot_be_ticked() -> None:
    text = "### 2026-01-01 — a\n- [X] **What:** a\n"
    with pytest.raises(CannotTick, match="already ticked"):
        tick(text, (date(2026, 1, 1), "a"), SHA, "t.py")
    with pytest.raises(CannotTick, match="no longer has an entry b of 2026-01-01"):
        tick(text, (date(2026, 1, 1), "b"), SHA, "t.py")


# --- properties

prose = st.text(alphabet=st.characters(blacklist_categories=("Cs",), blacklist_characters="\r\n"), max_size=30)
anything = st.text(
    alphabet=st.one_of(st.sampled_from("#-*[] x:`~<!>\n\r\t—"), st.characters(blacklist_categories=("Cs",))), max_size=200
)


@st.composite
def registries(draw: st.DrawFn) -> bytes:
    """A registry with odd prose around and in it, one line ending throughout, with or without one at the end."""
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    parts = [draw(st.sampled_from(["# D", "", "\ufeff# D"])), "## Open deferrals", ""]
    for number in range(draw(st.integers(1, 4))):
        mark = draw(st.sampled_from(["-", "*", "+", "  -"]))
        parts += [f"### 2026-01-{number + 1:02} — slug-{number}", *[""] * draw(st.integers(0, 1))]
        parts.append(f"{mark} [{draw(st.sampled_from(' xX'))}] **What:** w{draw(prose)}")
        parts += [f"    c{draw(prose)}" for _ in range(draw(st.integers(0, 2)))]
        parts += [f"{mark} **Filed by:** {draw(prose)}"] * draw(st.integers(0, 1))
        parts += draw(st.sampled_from([[], [""], ["", "---", ""], ["", "## Closed deferrals", ""], ["", f"p{draw(prose)}", ""]]))
    text = newline.join(parts) + draw(st.sampled_from(["", newline]))
    return text.encode() + draw(st.sampled_from([b"", b"\xff\xfe odd bytes"]))


@settings(max_examples=150)
@given(registries(), st.data())
def test_every_other_byte_stays(data: bytes, draw: st.DataObject) -> None:
    text = decode(data)
    before = parse(text)
    todo = [entry for entry in before.entries if not entry.ticked]
    if not todo:
        return
    entry = draw.draw(st.sampled_from(todo))
    after = encode(tick(text, entry.key, SHA, "extra/test_a.py"))

    added = f"**Closed by:** {SHA} (extra/test_a.py)".encode()
    assert after.count(added) == data.count(added) + 1
    at = after.index(added)
    start = max(after.rfind(b"\n", 0, at), after.rfind(b"\r", 0, at)) + 1
    ends = [place for place in (after.find(b"\r", at), after.find(b"\n", at)) if place >= 0]
    if ends:
        end = min(ends) + (2 if after[min(ends) : min(ends) + 2] == b"\r\n" else 1)
    else:  # the last line of a file without an end: what was added is the end of the line before, and itself
        end = len(after)
        start -= 2 if after[start - 2 : start] == b"\r\n" else 1
    rest = after[:start] + after[end:]
    differ = [place for place, (a, b) in enumerate(zip(data, rest, strict=True)) if a != b]
    assert len(differ) == 1
    assert (data[differ[0] : differ[0] + 1], rest[differ[0] : differ[0] + 1]) == (b" ", b"x")

    now = {e.key: e for e in parse(decode(after)).entries}
    assert now[entry.key].ticked and now[entry.key].closed_commit == SHA
    for other in before.entries:
        if other.key != entry.key:
            same = ("slug", "ticked", "what", "filed_by", "section")
            assert [getattr(now[other.key], name) for name in same] == [getattr(other, name) for name in same]


@settings(max_examples=200)
@given(st.one_of(anything, anything.map(lambda text: f"## Open deferrals\n### 2026-01-01 — a\n- [ ] **What:** b\n{text}")))
def test_any_text_is_read_without_a_crash(text: str) -> None:
    document = parse(text)
    for entry in document.entries:
        assert text[entry.box_at] in " xX"
        assert entry.what and entry.slug
        if not entry.ticked:
            tick(text, entry.key, SHA, "t.py")


@settings(max_examples=40)
@given(registries())
def test_the_patch_is_the_change(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    text = decode(data)
    todo = [entry for entry in parse(text).entries if not entry.ticked]
    if not todo:
        return
    after = encode(tick(text, todo[0].key, SHA, "t.py"))
    folder = tmp_path_factory.mktemp("patch")
    (folder / "DEFERRED.md").write_bytes(data)
    command = ["git", "apply", "-p1", "--whitespace=nowarn"]
    subprocess.run(command, input=patch("DEFERRED.md", data, after), cwd=folder, check=True)
    assert (folder / "DEFERRED.md").read_bytes() == after


# --- names


@pytest.mark.parametrize(
    ("slug", "recipe", "name"),
    [
        ("matrix-synapse-compress-state", "matrix-synapse", "compress-state"),
        ("matrix-synapse-compress_state.sh", "matrix-synapse", "compress-state"),
        ("matrix-synapse test_purge.sh", "matrix-synapse", "purge"),
        ("2026-01-01-ghost-create-a-post", "ghost", "create-a-post"),
        ("create-a-pad", "cryptpad", "create-a-pad"),
        ("ghost", "ghost", "ghost"),
    ],
)
def test_what_an_entry_calls_its_test(slug: str, recipe: str, name: str) -> None:
    assert name_of_test(slug, recipe) == name


@pytest.mark.parametrize(
    ("file", "function", "carries"),
    [
        ("extra/test_compress_state.py", "test_rows_drop", True),
        ("extra/test_state.py", "TestCompressor::test_compress_state_drops_rows", True),
        ("extra/compress_state/test_it.py", "test_it", False),
        ("extra/test_compress.py", "test_state", False),
        ("extra/test_decompress_states.py", "test_it", False),
        ("extra/test_state.py", "test_it[compress-state]", True),
    ],
)
def test_a_test_that_carries_an_entrys_name(file: str, function: str, carries: bool) -> None:
    assert ports("matrix-synapse-compress-state", "matrix-synapse", file, function) is carries


def test_a_name_of_two_letters_is_no_name() -> None:
    assert not ports("ghost-ab", "ghost", "extra/test_ab.py", "test_ab")
