"""May the owner of a token create a repo under a name? Read from the Hub's answer to `whoami`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WRITE_ROLES = frozenset({"admin", "write", "contributor"})


def can_create_repo(whoami: Mapping[str, Any], owner: str) -> bool:
    """`who` is the answer of `whoami-v2`. A token whose kind is not known is given the benefit of the doubt:
    the Hub itself has the last word when the repo is created.
    """
    token = (whoami.get("auth") or {}).get("accessToken") or {}
    role = token.get("role")
    if role == "read":
        return False
    if role == "fineGrained":
        scoped = (token.get("fineGrained") or {}).get("scoped") or []
        return any(
            (scope.get("entity") or {}).get("name") == owner and "repo.write" in scope.get("permissions", ())
            for scope in scoped
        )
    if whoami.get("name") == owner:
        return True
    return any(
        org.get("name") == owner and org.get("roleInOrg", "write") in _WRITE_ROLES
        for org in whoami.get("orgs") or []
    )
