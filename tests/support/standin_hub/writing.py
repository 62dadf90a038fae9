"""Endpoints that write: creating repos, uploading large files, committing."""

from __future__ import annotations

import base64
import json
from typing import Any

import yaml
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from support.standin_hub.access import Access, Refused, sha_of
from support.standin_hub.store import LFS_BYTES, LFS_SUFFIXES, Repo, Store


def routes(store: Store, access: Access) -> APIRouter:
    """Everything that changes something, and what a client asks before it does."""
    router = APIRouter()

    @router.post("/api/repos/create")
    async def create(request: Request) -> JSONResponse:
        asked = await request.json()
        who = access.who(request)
        owner = asked.get("organization") or (who.user if who else "")
        access.owner(request, owner)
        repo_id = f"{owner}/{asked['name']}"
        answer = {"url": f"{_base(request)}/{repo_id}", "name": repo_id}
        with store.lock:
            if repo_id in store.repos:
                return JSONResponse({**answer, "error": "You already created this model repo"}, 409)
            store.create(repo_id, private=asked.get("visibility") == "private")
        return JSONResponse(answer)

    @router.post("/api/validate-yaml")
    async def validate_yaml(request: Request) -> JSONResponse:
        parts = (await request.json())["content"].split("---\n", 2)
        try:
            valid = len(parts) == 3 and not parts[0] and isinstance(yaml.safe_load(parts[1]), dict)
        except yaml.YAMLError:
            valid = False
        errors = [] if valid else [{"message": "the card needs metadata between two lines of dashes"}]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    @router.post("/api/models/{owner}/{name}/preupload/{revision:path}")
    async def preupload(request: Request, owner: str, name: str, revision: str) -> dict[str, Any]:
        repo = access.writable(request, f"{owner}/{name}", create_pr="create_pr" in request.query_params)
        present = repo.commits[sha_of(repo, revision)].files
        rows = []
        for file in (await request.json())["files"]:
            path = file["path"]
            lfs = path.endswith(LFS_SUFFIXES) or file["size"] > LFS_BYTES
            old = present.get(path)
            oid = (old.sha256 if old.lfs else old.oid) if old else None
            rows.append(
                {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            )
        return {"files": rows}

    @router.post("/{owner}/{name}.git/info/lfs/objects/batch")
    async def lfs_batch(request: Request, owner: str, name: str) -> dict[str, Any]:
        access.writable(request, f"{owner}/{name}", create_pr=True)
        objects = []
        for wanted in (await request.json())["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"]}
            if not store.blob(wanted["oid"]).exists():
                verify = f"{_base(request)}/{owner}/{name}.git/info/lfs/objects/verify"
                upload = {"href": f"{_base(request)}/storage/{wanted['oid']}?signed=yes"}
                row["actions"] = {"upload": upload, "verify": {"href": verify}}
            objects.append(row)
        return {"transfer": "basic", "objects": objects}

    @router.put("/storage/{sha256}")
    async def upload(request: Request, sha256: str) -> JSONResponse:
        stored, _ = store.put(await request.body())
        return JSONResponse({}, 200 if stored == sha256 else 400)

    @router.post("/{owner}/{name}.git/info/lfs/objects/verify")
    async def verify(request: Request, owner: str, name: str) -> JSONResponse:
        access.writable(request, f"{owner}/{name}", create_pr=True)
        asked = await request.json()
        blob = store.blob(asked["oid"])
        good = blob.exists() and blob.stat().st_size == asked["size"]
        return JSONResponse({}, 200 if good else 404)

    @router.post("/api/models/{owner}/{name}/commit/{revision:path}")
    async def commit(request: Request, owner: str, name: str, revision: str) -> dict[str, Any]:
        create_pr = request.query_params.get("create_pr") == "1"
        repo = access.writable(request, f"{owner}/{name}", create_pr=create_pr)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        with store.lock:
            sha, number = _commit(store, repo, revision, lines, create_pr)
        url = f"{_base(request)}/{repo.id}"
        pull_request = f"{url}/discussions/{number}" if number else None
        return {
            "success": True,
            "commitOid": sha,
            "commitUrl": f"{url}/commit/{sha}",
            "pullRequestUrl": pull_request,
        }

    return router


def _commit(
    store: Store, repo: Repo, revision: str, lines: list[dict[str, Any]], create_pr: bool
) -> tuple[str, int | None]:
    """Apply an ndjson commit; (sha, number of the pull request)."""
    head = sha_of(repo, revision)
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit") not in (None, head):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    add, delete = {}, set()
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            add[value["path"]] = store.put(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            if not store.blob(value["oid"]).exists():
                raise Refused(400, f"LFS pointer points to a file that does not exist: {value['path']}")
            add[value["path"]] = (value["oid"], value["size"])
        elif line["key"] == "deletedFile":
            delete.add(value["path"])
    number = max(repo.pull_requests(), default=0) + 1 if create_pr else None
    ref = f"refs/pr/{number}" if number else revision
    sha = store.commit(repo, ref, header["summary"], header["description"], add, delete, parent=head)
    return sha, number


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")
