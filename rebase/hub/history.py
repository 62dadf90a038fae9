"""Searches a Hub repo's commits and pull requests for one that a job made earlier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote

from huggingface_hub import HfApi, get_session, hf_raise_for_status

from rebase.errors import HubError, HubUnavailable, RevisionNotFound
from rebase.hub.base import Published
from rebase.hub.remote_errors import hub_errors

# Newest first. A job looks for a commit of its own earlier attempt, at most hours ago.
_MAX_COMMITS = 500
_MAX_PULL_REQUESTS = 50
_MAX_PULL_REQUEST_COMMITS = 20


class CommitHistory:
    """Searches the recent commits of one repo."""

    def __init__(self, api: HfApi, repo_id: str, headers: dict[str, str]) -> None:
        self._api = api
        self._repo_id = repo_id
        self._headers = headers  # including the token

    def find(self, matches: Callable[[str], bool]) -> Published | None:
        """The newest commit on main, else on a pull request, whose full message matches."""
        endpoint, repo_id = self._api.endpoint, self._repo_id
        for sha, message in self._iter_commits("main", _MAX_COMMITS):
            if matches(message):
                return Published(repo_id, sha, f"{endpoint}/{repo_id}/commit/{sha}")
        for number in self._list_pull_requests():
            for sha, message in self._iter_commits(f"refs/pr/{number}", _MAX_PULL_REQUEST_COMMITS):
                if matches(message):
                    pull_request = f"{endpoint}/{repo_id}/discussions/{number}"
                    return Published(repo_id, sha, f"{endpoint}/{repo_id}/commit/{sha}", pull_request)
        return None

    def _iter_commits(self, revision: str, limit: int) -> Iterator[tuple[str, str]]:
        """(sha, full message) of at most `limit` commits; empty for a branch that does not exist."""
        try:
            yield from islice(self._iter_all_commits(revision), limit)
        except RevisionNotFound:
            return

    def _iter_all_commits(self, revision: str) -> Iterator[tuple[str, str]]:
        url: str | None = (
            f"{self._api.endpoint}/api/models/{self._repo_id}/commits/{quote(revision, safe='')}"
        )
        while url is not None:
            page, url = self._fetch_page(url)
            for commit in page:
                yield commit["id"], f"{commit['title']}\n\n{commit.get('message') or ''}"

    def _fetch_page(self, url: str) -> tuple[list[dict[str, Any]], str | None]:
        """One page, and the next one's URL if it is on the Hub, because requests include the token."""
        with hub_errors(f"the history of {self._repo_id}"):
            response = get_session().get(url, headers=self._headers)
            hf_raise_for_status(response)
            next_url = response.links.get("next", {}).get("url")
            if next_url is not None and not next_url.startswith(f"{self._api.endpoint}/"):
                next_url = None
            return response.json(), next_url

    def _list_pull_requests(self) -> list[int]:
        """Numbers of the newest pull requests, including closed ones."""
        try:
            with hub_errors(f"the pull requests of {self._repo_id}"):
                discussions = self._api.get_repo_discussions(self._repo_id, discussion_type="pull_request")
                return [pull_request.num for pull_request in islice(discussions, _MAX_PULL_REQUESTS)]
        except HubUnavailable:
            raise
        except HubError:  # discussions are disabled for this repo, so there are no pull requests
            return []
