"""Repo ids as both hubs check them."""

from __future__ import annotations

from rebase.errors import RepoNotFound, RequestInvalid
from rebase.schemas.repos import MAX_REPO_ID, check_repo_id


def validate_repo_id(repo_id: str) -> str:
    """`repo_id` itself. RepoNotFound when no repo can have that name."""
    try:
        return check_repo_id(repo_id)
    except ValueError as exc:
        raise RepoNotFound(f"'{repo_id}' is not a repo id such as 'owner/name'.") from exc


def is_repo_id(text: str) -> bool:
    """Can a repo be called so?"""
    try:
        check_repo_id(text)
    except ValueError:
        return False
    return True


def validate_output_name(name: str) -> str:
    """`name` when it is a legal repo id of at most 96 characters; RequestInvalid about `output` otherwise."""
    try:
        return check_repo_id(name)
    except ValueError as exc:
        length = f"longer than {MAX_REPO_ID} characters"
        problem = length if len(name) > MAX_REPO_ID else "not a legal repo id"
        raise RequestInvalid(
            f"The default output name '{name}' is {problem}.",
            hint="Name the output yourself: output.repo_id.",
            pointer="/output/repo_id",
        ) from exc
