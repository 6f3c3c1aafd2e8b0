"""The fake forge driven by a client that others generated from Gitea's own API description."""

from __future__ import annotations

from datetime import UTC, datetime

import gitea_api
import pytest
from gitea_api.rest import ApiException

from enrollment.fakeforge import Forge, Server
from tests.enrollment.fakeforge.allowed import check


@pytest.fixture
def connection(server: Server, forge: Forge) -> gitea_api.ApiClient:
    settings = gitea_api.Configuration()
    settings.host = server.url + "/api/v1"
    # This client also sends an empty basic auth, which goes before nothing.
    settings.api_key = {"access_token": forge.add_token("bot")}
    return gitea_api.ApiClient(settings)


def test_a_bot_at_work(connection: gitea_api.ApiClient, forge: Forge) -> None:
    issues, repos = gitea_api.IssueApi(connection), gitea_api.RepositoryApi(connection)
    assert gitea_api.MiscellaneousApi(connection).get_version().version == "1.15"
    assert gitea_api.UserApi(connection).user_get_current().login == "bot"
    assert [repo.full_name for repo in repos.repo_search(q="cc-ci", topic=True).data] == ["recipes/web"]
    gitea_api.OrganizationApi(connection).org_is_member("recipes", "alice")
    with pytest.raises(ApiException) as refused:
        gitea_api.OrganizationApi(connection).org_is_member("recipes", "mallory")
    assert refused.value.status == 404

    [found] = issues.issue_search_issues(type="pulls", state="open", since=datetime(2026, 1, 1, tzinfo=UTC))
    assert (found.repository.full_name, found.number) == ("recipes/web", 1)
    pull = repos.repo_get_pull_request("recipes", "web", 1)
    assert (pull.user.login, pull.head.repo.full_name) == ("alice", "recipes/web")
    assert pull.head.sha == forge.pull("recipes/web", 1).head_sha

    forge.comment("recipes/web", 1, "alice", "!testme")
    [asked] = issues.issue_get_repo_comments("recipes", "web", since=found.updated_at)
    assert (asked.body, asked.user.login) == ("!testme", "alice")
    reaction = gitea_api.EditReactionOption(content="eyes")
    assert issues.issue_post_comment_reaction("recipes", "web", asked.id, content=reaction).content == "eyes"

    answer = issues.issue_create_comment("recipes", "web", 1, body=gitea_api.CreateIssueCommentOption(body="Queued."))
    issues.issue_edit_comment("recipes", "web", answer.id, body=gitea_api.EditIssueCommentOption(body="Passed."))
    assert [row.body for row in issues.issue_get_comments("recipes", "web", 1)] == ["!testme", "Passed."]
    issues.issue_delete_comment("recipes", "web", answer.id)

    status = gitea_api.CreateStatusOption(state="success", context="cc-ci", description="passed")
    repos.repo_create_status("recipes", "web", pull.head.sha, body=status)
    assert [row.state for row in forge.statuses_of("recipes/web", pull.head.sha)] == ["success"]
    assert repos.repo_get_contents("recipes", "web", "compose.yml", ref=pull.head.sha).type == "file"
    assert repos.repo_get_branch("recipes", "web", "change").commit.id == pull.head.sha
    with pytest.raises(ApiException) as refused:
        repos.repo_list_hooks("recipes", "web")
    assert refused.value.status == 403

    asked_for = [(request.method, request.path, request.query, request.body) for request in forge.requests]
    assert [complaint for request in asked_for if (complaint := check(*request))] == []
