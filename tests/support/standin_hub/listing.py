"""`GET /api/models`: an owner's models, as the real client pages through them."""

from __future__ import annotations

from typing import Any

import yaml
from fastapi import APIRouter, Request, Response

from support.standin_hub.access import Access
from support.standin_hub.store import Repo, Store

PAGE = 50


def routes(store: Store, access: Access) -> APIRouter:
    """The one endpoint."""
    router = APIRouter()

    @router.get("/api/models")
    def models(
        request: Request, response: Response, author: str = "", sort: str = "lastModified", p: int = 0
    ) -> list[dict[str, Any]]:
        who = access.who(request)
        found = [
            repo
            for repo in list(store.repos.values())
            if repo.owner == author
            and not repo.id.startswith("datasets/")
            and (not repo.private or (who is not None and who.owns(repo.owner)))
        ]
        key = "created_at" if sort == "createdAt" else "modified_at"
        found.sort(key=lambda repo: getattr(repo, key), reverse=True)
        if (p + 1) * PAGE < len(found):
            response.headers["Link"] = f'<{request.url.include_query_params(p=p + 1)}>; rel="next"'
        return [{"id": repo.id, **described(store, repo)} for repo in found[p * PAGE : (p + 1) * PAGE]]

    return router


def described(store: Store, repo: Repo) -> dict[str, Any]:
    """What the Hub says of a model beside its files: dates, and its card's metadata."""
    sha = repo.refs["main"]
    card = _card(store, repo, sha)
    licence = [f"license:{card['license']}"] if isinstance(card.get("license"), str) else []
    return {
        "sha": sha,
        "private": repo.private,
        "createdAt": repo.created_at,
        "lastModified": repo.modified_at,
        "tags": [*(card.get("tags") or []), *licence],
        "cardData": card,
    }


def _card(store: Store, repo: Repo, sha: str) -> dict[str, Any]:
    file = repo.commits[sha].files.get("README.md")
    text = store.blob(file.sha256).read_text(errors="replace") if file is not None else ""
    if not text.startswith("---\n"):
        return {}
    found = yaml.safe_load(text[4:].partition("\n---")[0])
    return found if isinstance(found, dict) else {}
