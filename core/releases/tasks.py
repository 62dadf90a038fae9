"""What the jobs hold that no client asks for: look at a release, look for releases that nobody announced."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

SeenBy = Literal["webhook", "poll", "retry"]
MAIN_REF = "refs/heads/main"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReleaseTask(_Model):
    """One release for one subscription. `sha` is what was announced; the worker reads the Hub anew."""

    subscription_id: str
    repo_id: str
    sha: str
    seen_by: SeenBy


class ReconcileTask(_Model):
    """An owner's models, for every subscription of the job's tenant to that owner."""

    owner: str
