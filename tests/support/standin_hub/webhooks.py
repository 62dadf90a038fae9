"""Webhooks: registered as the real client registers them, told of every change as the Hub tells it.

Deliveries go out one after the other in a thread of their own. The Hub sends each once; `repeat` sends it
again, as a proxy that retries does.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from dataclasses import dataclass, field
from typing import Any

import httpx2
from fastapi import APIRouter, Request

from support.standin_hub.access import Access, Refused
from support.standin_hub.store import Repo, Store


@dataclass
class Webhook:
    """Where to, for whom, with which secret."""

    id: str
    url: str
    watched: list[dict[str, str]]
    domains: list[str]
    secret: str | None

    def watches(self, repo: Repo) -> bool:
        """Is this repo, or its owner, watched?"""
        return any(
            item["name"] == (repo.owner if item["type"] in ("user", "org") else repo.id)
            for item in self.watched
        )

    def shown(self) -> dict[str, Any]:
        """As the API shows it."""
        shown = {"id": self.id, "url": self.url, "watched": self.watched, "domains": self.domains}
        return {**shown, "secret": self.secret, "disabled": False}


@dataclass(frozen=True)
class Delivery:
    """One that went out, and what was answered (0: nothing)."""

    payload: dict[str, Any]
    status: int
    body: str


@dataclass
class Webhooks:
    """All of them, and what they were told."""

    store: Store
    repeat: int = 1
    hooks: dict[str, Webhook] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Webhook, dict[str, Any]]] = queue.SimpleQueue()
        self.store.listener = self.tell
        threading.Thread(target=self._run, name="standin-webhooks", daemon=True).start()

    def add(
        self, url: str, *, owner: str, secret: str | None, domains: tuple[str, ...] = ("repo",)
    ) -> Webhook:
        """Watch everything of an owner."""
        return self.register(url, [{"type": "org", "name": owner}], list(domains), secret)

    def register(
        self, url: str, watched: list[dict[str, str]], domains: list[str], secret: str | None
    ) -> Webhook:
        """A new one."""
        hook_id = hashlib.sha1(f"{url}{watched}{len(self.hooks)}".encode()).hexdigest()[:24]
        self.hooks[hook_id] = Webhook(hook_id, url, watched, domains, secret)
        return self.hooks[hook_id]

    def tell(self, repo: Repo, event: dict[str, str], refs: list[dict[str, Any]] | None) -> None:
        """Something happened: whoever watches is told."""
        for hook in list(self.hooks.values()):
            if hook.watches(repo):
                for _ in range(self.repeat):
                    self._queue.put((hook, payload_of(repo, event, refs, hook.id)))

    def _run(self) -> None:
        while True:
            hook, payload = self._queue.get()
            headers = {"X-Webhook-Secret": hook.secret} if hook.secret else {}
            try:
                answer = httpx2.post(hook.url, json=payload, headers=headers, timeout=30, trust_env=False)
                self.deliveries.append(Delivery(payload, answer.status_code, answer.text))
            except httpx2.HTTPError as exc:
                self.deliveries.append(Delivery(payload, 0, str(exc)))


def payload_of(
    repo: Repo, event: dict[str, str], refs: list[dict[str, Any]] | None, webhook_id: str
) -> dict[str, Any]:
    """Version 3, as the Hub sends it."""
    dataset = repo.id.startswith("datasets/")
    name = repo.id.removeprefix("datasets/")
    payload = {
        "event": event,
        "repo": {
            "type": "dataset" if dataset else "model",
            "name": name,
            "id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
            "private": repo.private,
            "url": {"web": f"https://hub.example/{repo.id}", "api": f"https://hub.example/api/models/{name}"},
            "tags": [],
            "headSha": repo.refs.get("main"),
            "owner": {"id": hashlib.sha1(repo.owner.encode()).hexdigest()[:24]},
        },
        "webhook": {"id": webhook_id, "version": 3},
    }
    return {**payload, **({"updatedRefs": refs} if refs is not None else {})}


def routes(webhooks: Webhooks, access: Access) -> APIRouter:
    """What `hf webhooks create` and `hf webhooks ls` call."""
    router = APIRouter()

    @router.post("/api/settings/webhooks")
    async def create(request: Request) -> dict[str, Any]:
        if access.who(request) is None:
            raise Refused(401, "Invalid username or password.")
        asked = await request.json()
        hook = webhooks.register(asked["url"], asked["watched"], asked["domains"], asked.get("secret"))
        return {"webhook": hook.shown()}

    @router.get("/api/settings/webhooks")
    def listed(request: Request) -> list[dict[str, Any]]:
        if access.who(request) is None:
            raise Refused(401, "Invalid username or password.")
        return [hook.shown() for hook in webhooks.hooks.values()]

    return router
