"""The pages that a person looks at and comments on."""

from __future__ import annotations

import re

import pytest
import requests

from enrollment.fakeforge import Forge, Server, markdown
from tests.enrollment.fakeforge.conftest import Clock

PULL = "/recipes/web/pulls/1"


def get(server: Server, path: str, status: int = 200) -> str:
    answer = requests.get(server.url + path, timeout=60)
    assert answer.status_code == status
    return answer.text


def post(server: Server, origin: str | None, **form: str) -> requests.Response:
    headers = {"Origin": server.url if origin is None else origin}
    return requests.post(server.url + PULL, data=form, headers=headers, allow_redirects=False, timeout=60)


def test_the_way_from_the_list_to_a_pull_request(server: Server) -> None:
    assert 'href="/recipes/web"' in get(server, "/")
    assert f'href="{PULL}"' in get(server, "/recipes/web")
    page = get(server, PULL)
    assert "Change it" in page and "<p>please</p>" in page and "No comments yet." in page


def test_a_comment_written_on_the_page_is_one_of_alice(server: Server, forge: Forge, clock: Clock) -> None:
    assert '<option value="alice" selected>alice (member, may write)</option>' in get(server, PULL)
    now = clock.step(5)
    answer = post(server, None, author="alice", body="!testme\nand more")
    [comment] = forge.comments_of(forge.issue("recipes/web", 1))
    assert (answer.status_code, answer.headers["Location"]) == (303, f"{PULL}?as=alice#issuecomment-{comment.id}")
    assert (comment.body, comment.created) == ("!testme\r\nand more", now)
    assert forge.issue("recipes/web", 1).updated == now
    assert "!testme" in get(server, PULL) and "No comments yet." not in get(server, PULL)


def test_another_site_cannot_write(server: Server, forge: Forge) -> None:
    for origin in ("http://evil.example", "null", ""):
        assert post(server, origin, author="alice", body="x").status_code == 403
    assert post(server, None, author="alice", body="  ").status_code == 400
    assert post(server, None, author="nobody", body="x").status_code == 404
    assert forge.comments_of(forge.issue("recipes/web", 1)) == []


def test_what_a_bot_writes_is_shown_as_meant(server: Server, forge: Forge) -> None:
    body = (
        "<!-- hidden: run 7 -->\n**passed**\n\n<details><summary>Log</summary>\n\n```\n<b>\n```\n\n</details>\n\n"
        "| stage | result |\n|---|---|\n| install | ✓ |\n\n<script>alert(1)</script> <img src=x onerror=alert(1)>"
    )
    comment = forge.comment("recipes/web", 1, "bot", body)
    issue = forge.issue("recipes/web", 1)
    forge.react(issue, comment, "alice", "eyes")
    page = get(server, PULL)
    assert "<strong>passed</strong>" in page and "<details><summary>Log</summary>" in page and "<td>✓</td>" in page
    assert "hidden: run 7" not in page and "eyes <b>1</b>" in page
    assert "<script>alert" not in page and "<img" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    "text",
    [
        "<details onclick=x>",
        "<details><summary><svg onload=x>",
        "[x](javascript:alert(1))",
        "<a href=x>",
        "<!-- <script> -->",
        "<style>*{}</style>",
        "a <!-- open <script>",
        "<DETAILS OPEN><script>",
    ],
)
def test_markdown_makes_no_tags_but_the_allowed_ones(text: str) -> None:
    for tag in re.findall(r"<[^>]*>", markdown.render(text)):
        assert re.fullmatch(r"</?(p|details( open)?|summary|br /|em|strong|code|pre)>", tag), tag


def test_a_fold_left_open_is_closed() -> None:
    assert markdown.render("<details><summary>x</summary>\n\ny").count("</details>") == 1


def test_titles_and_names_are_escaped(server: Server, forge: Forge) -> None:
    forge.push("recipes/web", "odd", {"<u>.txt": "<var>&\n"}, "<var>message", "alice")
    pull = forge.open_pull("recipes/web", "recipes/web", "odd", "alice", "<var>title")
    forge.set_status("recipes/web", pull.head_sha, "error", "<var>", description="<var>", target_url="javascript:alert(1)")
    paths = ("", "/pulls/2", "/pulls/2/files", f"/commit/{pull.head_sha}")
    for path in paths:
        page = get(server, "/recipes/web" + path)
        assert "&lt;" in page and not re.search(r"<var>|<u>|javascript:", page)


def test_statuses_and_changes_are_shown(server: Server, forge: Forge) -> None:
    sha = forge.pull("recipes/web", 1).head_sha
    forge.set_status("recipes/web", sha, "failure", "cc-ci/test", target_url="http://ci.example/1", description="2 failed")
    page = get(server, PULL)
    assert "✗ failure" in page and "cc-ci/test" in page and 'href="http://ci.example/1"' in page
    for path in (f"{PULL}/files", f"/recipes/web/commit/{sha}"):
        assert '<span class="a">+b</span>' in get(server, path)
    assert requests.get(server.url + PULL + ".diff", timeout=60).status_code == 404


def test_the_page_refreshes_by_parts(server: Server, forge: Forge) -> None:
    forge.comment("recipes/web", 1, "alice", "new")
    part = get(server, PULL + "?part=live")
    assert "<html" not in part and "new" in part
    ids = re.findall(r'\bid="([^"]+)"', part)
    assert len(ids) == len(set(ids)) and "commits" in ids


def test_pages_bring_all_they_need(server: Server) -> None:
    answer = requests.get(server.url + PULL, timeout=60)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', answer.text)
    assert answer.text.count("<label>") == 2 and 'lang="en"' in answer.text


def test_what_is_not_there(server: Server) -> None:
    for path in ("/no/repo", "/recipes/web/pulls/9", "/recipes/web/commit/1234567", "/x/y/z", "/recipes/web/issues/7"):
        assert "There is nothing at this address." in get(server, path, 404)
