"""Endpoints that read: repo info, trees, history, discussions, files with ranges."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse, JSONResponse, RedirectResponse

from support.standin_hub.access import Access, Refused, sha_of
from support.standin_hub.listing import described
from support.standin_hub.store import File, Repo, Store, pointer

PAGE = 50


def routes(store: Store, access: Access) -> APIRouter:
    """Everything that changes nothing."""
    router = APIRouter()
    model = "/api/models/{owner}/{name}"

    @router.get("/api/whoami-v2")
    def whoami(request: Request) -> dict[str, Any]:
        who = access.who(request)
        if who is None:
            raise Refused(401, "Invalid username or password.")
        token = {"displayName": "stand-in", "role": who.role}
        orgs = [{"name": name, "roleInOrg": role} for name, role in who.orgs.items()]
        return {
            "type": "user",
            "name": who.user,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": token},
        }

    @router.get(f"{model}/auth-check")
    def auth_check(request: Request, owner: str, name: str) -> dict[str, Any]:
        access.readable(request, f"{owner}/{name}")
        return {}

    @router.get(f"{model}/auth-check/write")
    def auth_check_write(request: Request, owner: str, name: str) -> dict[str, Any]:
        access.writable(request, f"{owner}/{name}")
        return {}

    @router.get(model)
    @router.get(model + "/revision/{revision:path}")
    def info(request: Request, owner: str, name: str, revision: str = "main") -> dict[str, Any]:
        repo = access.visible(request, f"{owner}/{name}")
        return {**described(store, repo), **_info(repo, sha_of(repo, revision))}

    @router.get(model + "/tree/{place:path}")
    def tree(request: Request, owner: str, name: str, place: str) -> list[dict[str, Any]]:
        repo = access.visible(request, f"{owner}/{name}")
        sha, folder = _split(repo, place)
        recursive = request.query_params.get("recursive", "").lower() in ("1", "true")
        return _tree(repo.commits[sha].files, folder, recursive)

    @router.post(model + "/paths-info/{revision:path}")
    async def paths_info(request: Request, owner: str, name: str, revision: str) -> list[dict[str, Any]]:
        repo = access.visible(request, f"{owner}/{name}")
        files = repo.commits[sha_of(repo, revision)].files
        asked = parse_qs((await request.body()).decode()).get("paths", [])
        return [_entry(path, files[path]) for path in asked if path in files]

    @router.get(model + "/commits/{revision:path}")
    def commits(
        request: Request, response: Response, owner: str, name: str, revision: str, p: int = 0
    ) -> Any:
        repo = access.visible(request, f"{owner}/{name}")
        history = repo.history(sha_of(repo, revision))
        if (p + 1) * PAGE < len(history):
            response.headers["Link"] = f'<{request.url.include_query_params(p=p + 1)}>; rel="next"'
        return [
            {
                "id": c.sha,
                "title": c.title,
                "message": c.message,
                "date": c.date,
                "authors": [{"user": "stand-in"}],
            }
            for c in history[p * PAGE : (p + 1) * PAGE]
        ]

    @router.get(f"{model}/discussions")
    def discussions(request: Request, owner: str, name: str, p: int = 0) -> dict[str, Any]:
        repo = access.visible(request, f"{owner}/{name}")
        rows = [_discussion(repo, number) for number in repo.pull_requests()]
        return {"count": len(rows), "start": p * PAGE, "discussions": rows[p * PAGE : (p + 1) * PAGE]}

    @router.api_route("/{owner}/{name}/resolve/{place:path}", methods=["GET", "HEAD"])
    def resolve(request: Request, owner: str, name: str, place: str) -> Response:
        return _sent(store, access.readable(request, f"{owner}/{name}"), place, request)

    dataset = "/api/datasets/{owner}/{name}"

    @router.get(f"{dataset}/auth-check")
    def dataset_auth_check(request: Request, owner: str, name: str) -> dict[str, Any]:
        access.readable(request, f"datasets/{owner}/{name}")
        return {}

    @router.get(dataset)
    @router.get(dataset + "/revision/{revision:path}")
    def dataset_info(request: Request, owner: str, name: str, revision: str = "main") -> dict[str, Any]:
        repo = access.visible(request, f"datasets/{owner}/{name}")
        return {**_info(repo, sha_of(repo, revision)), "id": f"{owner}/{name}", "tags": []}

    @router.api_route("/datasets/{owner}/{name}/resolve/{place:path}", methods=["GET", "HEAD"])
    def resolve_dataset(request: Request, owner: str, name: str, place: str) -> Response:
        return _sent(store, access.readable(request, f"datasets/{owner}/{name}"), place, request)

    @router.api_route("/storage/{sha256}", methods=["GET", "HEAD"])
    def stored(sha256: str) -> Response:
        if not store.blob(sha256).exists():
            return JSONResponse({"error": "no such object"}, 404)
        headers = {"ETag": f'"{sha256}"'}
        return FileResponse(store.blob(sha256), headers=headers, media_type="application/octet-stream")

    return router


def _sent(store: Store, repo: Repo, place: str, request: Request) -> Response:
    """A small file, or the way to a large one."""
    sha, path = _split(repo, place)
    file = repo.commits[sha].files.get(path)
    if file is None:
        raise Refused(404, "Entry not found", "EntryNotFound")
    if not file.lfs:
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        return FileResponse(store.blob(file.sha256), headers=headers, media_type="application/octet-stream")
    headers = {"X-Repo-Commit": sha, "X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
    # Another origin than the Hub's, as the real storage is: whoever follows must leave the token behind.
    storage = request.url.replace(hostname="localhost", path=f"/storage/{file.sha256}", query="signed=yes")
    return RedirectResponse(str(storage), 302, {**headers, "ETag": f'"{file.oid}"'})


def _split(repo: Repo, place: str) -> tuple[str, str]:
    """'<revision>/<path>' → (sha, path); a revision may hold slashes itself."""
    parts = place.split("/")
    for count in range(1, len(parts) + 1):
        sha = repo.sha_of("/".join(parts[:count]))
        if sha is not None:
            return sha, "/".join(parts[count:])
    raise Refused(404, f"Invalid rev id: {place}", "RevisionNotFound")


def _info(repo: Repo, sha: str) -> dict[str, Any]:
    siblings = [
        {
            "rfilename": path,
            "size": file.size,
            "blobId": file.oid,
            **({"lfs": {"sha256": file.sha256, **_lfs_sizes(file)}} if file.lfs else {}),
        }
        for path, file in sorted(repo.commits[sha].files.items())
    ]
    gated = "manual" if repo.gated else False
    return {
        "id": repo.id,
        "sha": sha,
        "private": repo.private,
        "gated": gated,
        "siblings": siblings,
    }


def _lfs_sizes(file: File) -> dict[str, int]:
    return {"size": file.size, "pointerSize": len(pointer(file.sha256, file.size))}


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    return {**entry, "lfs": {"oid": file.sha256, **_lfs_sizes(file)}} if file.lfs else entry


def _tree(files: dict[str, File], folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    below = {path: file for path, file in sorted(files.items()) if path.startswith(prefix)}
    folders = {
        prefix + path.removeprefix(prefix).split("/")[0] for path in below if "/" in path.removeprefix(prefix)
    }
    shown = below if recursive else {p: f for p, f in below.items() if "/" not in p.removeprefix(prefix)}
    rows = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
    return rows + [_entry(path, file) for path, file in shown.items()]


def _discussion(repo: Repo, number: int) -> dict[str, Any]:
    commit = repo.commits[repo.refs[f"refs/pr/{number}"]]
    return {
        "num": number,
        "title": commit.title,
        "author": {"name": "stand-in"},
        "createdAt": commit.date,
        "status": "open",
        "isPullRequest": True,
        "repo": {"name": repo.id, "type": "model"},
    }
