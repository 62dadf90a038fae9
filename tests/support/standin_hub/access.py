"""Who asks, and what the Hub answers when they may not: the same statuses and X-Error-Code headers."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse

from support.standin_hub.store import Repo, Store, Token


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code

    def response(self) -> JSONResponse:
        """As the Hub sends it: code and message in headers, message in the body too."""
        headers = {"X-Error-Message": self.message}
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message}, self.status, headers)


class Access:
    """The rules. A repo that one may not see does not exist."""

    def __init__(self, store: Store, tokens: Mapping[str, Token]) -> None:
        self._store = store
        self._tokens = tokens

    def who(self, request: Request) -> Token | None:
        """The token's record, None without a token; 401 for one that is not known."""
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        if value not in self._tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self._tokens[value]

    def visible(self, request: Request, repo_id: str) -> Repo:
        """The repo, if this token may know of it."""
        who = self.who(request)
        repo = self._store.repos.get(repo_id)
        if repo is None or (repo.private and not (who and who.owns(repo.owner))):
            raise Refused(401 if who is None else 404, "Repository not found", "RepoNotFound")
        if repo.disabled:
            raise Refused(403, "Access to this resource is disabled.")
        return repo

    def readable(self, request: Request, repo_id: str) -> Repo:
        """The repo, if this token may read its files."""
        repo, who = self.visible(request, repo_id), self.who(request)
        if repo.gated and not (who and (who.owns(repo.owner) or who.user in repo.granted)):
            status = 401 if who is None else 403
            raise Refused(status, f"Access to model {repo_id} is restricted.", "GatedRepo")
        return repo

    def writable(self, request: Request, repo_id: str, *, create_pr: bool = False) -> Repo:
        """The repo, if this token may commit to it (or propose a commit to it)."""
        repo, who = self.readable(request, repo_id), self.who(request)
        if who is None:
            raise Refused(401, "Invalid username or password.")
        if not create_pr and not who.writes(repo.owner):
            raise Refused(403, "You don't have the rights to write to this repo")
        if create_pr and who.role != "write":
            raise Refused(403, "This token may not create pull requests")
        return repo

    def owner(self, request: Request, owner: str) -> None:
        """May this token create repos there?"""
        who = self.who(request)
        if who is None:
            raise Refused(401, "Invalid username or password.")
        if not who.writes(owner):
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')


def sha_of(repo: Repo, revision: str) -> str:
    """The commit, or the Hub's answer for one that is not there."""
    sha = repo.sha_of(revision)
    if sha is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return sha
