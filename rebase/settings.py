"""Every setting of a deployment: environment variables with the prefix `REBASE_`, or a `.env` file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from rebase.schemas.callback_policy import DEFAULT_DELAYS, Allowlist, parse_delays

_DEFAULT_HOME = Path(".rebase")


class Settings(BaseSettings):
    """Defaults are the embedded deployment; production sets the URLs and paths."""

    model_config = SettingsConfigDict(env_prefix="REBASE_", env_file=".env", extra="ignore")

    home: Path = Field(
        default=_DEFAULT_HOME, description="Folder for everything that has no setting of its own."
    )
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL; default: SQLite inside `home`."
    )
    broker_url: str | None = Field(
        default=None, description="Celery broker; default: redis_url, else a folder in `home`."
    )
    redis_url: SecretStr | None = Field(
        default=None, description="Turns on the Redis tier of the factor cache."
    )

    hub_dir: Path | None = Field(default=None, description="Use this local hub folder instead of the Hub.")
    hub_token: SecretStr | None = Field(default=None, description="Token for the Hub; never logged.")

    secret_keys: SecretStr | None = Field(
        default=None,
        description=(
            "Keys that secrets are encrypted with at rest, separated by commas: the first one seals, all of "
            "them open. `rebase secrets key` makes one. Default: a key file inside `home`, on SQLite only."
        ),
    )

    webhook_secret: SecretStr | None = Field(
        default=None,
        description=(
            "Secrets that the Hub may send with its webhooks (`X-Webhook-Secret`), separated by commas: "
            "while one is replaced, both are accepted. Unset: there is no webhook."
        ),
    )
    reconcile_s: float = Field(
        default=3600.0,
        ge=0,
        description="How often the models of each subscription's owner are looked at for releases that no "
        "webhook told; 0 = off.",
    )

    host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port that the API listens on.")
    auth: Literal["none", "keys"] = Field(default="none", description="`none` is allowed on loopback only.")
    max_body_bytes: int = Field(default=256 * 1024, ge=1024, description="Longer request bodies are refused.")

    share_hub_token: bool = Field(
        default=False,
        description=(
            "Let jobs of every tenant use `hub_token`, where neither the request nor the tenant brings a "
            "token of its own. Else only jobs of the tenant `default` do."
        ),
    )
    tenant_max_running: int | None = Field(
        default=None,
        ge=1,
        description="Jobs of one tenant that run at once; the others wait. Null: no limit. "
        "`rebase tenants set` overrides this and the next three for one tenant.",
    )
    tenant_max_queued: int | None = Field(
        default=None, ge=1, description="Jobs of one tenant that are not done; more are refused with 429."
    )
    tenant_jobs_per_day: int | None = Field(
        default=None, ge=1, description="Jobs that one tenant may submit within 24 hours."
    )
    tenant_requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Requests of one tenant, where keys are asked for; counted in Redis where there is one.",
    )

    keep_jobs_days: float | None = Field(
        default=None,
        gt=0,
        description="Jobs that ended longer ago are deleted with all that hangs on them; null keeps them. "
        "Registered anchor pools stay.",
    )
    keep_events_days: float | None = Field(
        default=None,
        gt=0,
        description="The same for the history of ended jobs and their callbacks; state moves stay.",
    )
    keep_audit_days: float | None = Field(
        default=None, gt=0, description="The same for lines of the audit log."
    )

    cache_dir: Path | None = Field(default=None, description="Factor cache on disk; default inside `home`.")
    cache_max_bytes: int = Field(
        default=20 * 2**30, ge=0, description="Bound of the disk cache; the least recently used go; 0 = off."
    )
    redis_cache_ttl_s: int = Field(
        default=7 * 24 * 3600, ge=1, description="How long Redis keeps a cached factor."
    )
    redis_cache_max_entry_bytes: int = Field(
        default=64 * 2**20, ge=0, description="Larger factors stay on the disk of their machine."
    )
    work_dir: Path | None = Field(
        default=None, description="Scratch space of running jobs; default inside `home`."
    )

    tasks_dir: Path | None = Field(
        default=None,
        description=(
            "Folder with task files for lm-evaluation-harness, whose names requests may then use beside the "
            "harness's own. Task files can name code, so keep it as safe as this program."
        ),
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where workers compute; `auto` takes a GPU when there is one."
    )
    model_bytes: int | None = Field(
        default=None,
        ge=0,
        description=(
            "Memory for base models that run; null takes most of what is free. Bases that do not fit "
            "together run in turn, and one that does not fit alone is read layer by layer."
        ),
    )
    activation_bytes: int = Field(
        default=4 * 2**30, ge=0, description="Memory for sums over activations; less means more passes."
    )
    lease_s: float = Field(
        default=60.0, gt=0, description="A worker that is silent this long has lost the job."
    )
    heartbeat_s: float = Field(
        default=5.0,
        gt=0,
        validate_default=True,
        description="How often a worker renews its lease and hears of a cancellation.",
    )
    sweep_s: float = Field(
        default=5.0, gt=0, description="How often the keeper relays, sweeps and expires leases."
    )
    max_attempts: int = Field(default=3, ge=1, description="Starts of one job, after which it fails.")
    retry_base_s: float = Field(
        default=10.0, ge=0, description="First wait before another attempt; doubles each time."
    )
    soft_time_limit_s: int = Field(
        default=6 * 3600, ge=1, description="A job that runs longer fails with `time_limit`."
    )
    hard_time_limit_s: int | None = Field(
        default=None,
        ge=1,
        description="Kills a job that goes on; default: five minutes after the soft limit.",
    )

    log_format: Literal["console", "json"] = Field(
        default="console", description="`json` writes one object per line."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe messages that are logged."
    )

    callback_allow: str = Field(
        default="",
        description=(
            "Hosts, addresses and networks that callbacks may go to beside public https, separated by "
            "commas; plain http is allowed to them. A listed name is trusted with whatever it resolves to."
        ),
    )
    callback_waits_s: str = Field(
        default=DEFAULT_DELAYS,
        description="Seconds before each further attempt at a callback; after the last one it is given up.",
    )
    callback_timeout_s: float = Field(
        default=15.0, gt=0, le=60, description="Longest time for one attempt at a callback, DNS included."
    )
    callback_secret_overlap_s: int = Field(
        default=24 * 3600, ge=0, description="How long a replaced signing secret goes on signing."
    )
    callback_ca_file: Path | None = Field(
        default=None, description="Certificates (PEM) of further authorities that receivers may use."
    )

    @field_validator("callback_allow")
    @classmethod
    def _validate_callback_allow(cls, value: str) -> str:
        Allowlist.parse(value)
        return value

    @field_validator("callback_waits_s")
    @classmethod
    def _validate_callback_waits(cls, value: str) -> str:
        parse_delays(value)
        return value

    @field_validator("home", "hub_dir", "cache_dir", "work_dir", "callback_ca_file")
    @classmethod
    def _make_absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("heartbeat_s")
    @classmethod
    def _validate_heartbeat(cls, value: float, info: ValidationInfo) -> float:
        """One late beat must not cost the job."""
        if value > info.data.get("lease_s", value * 2) / 2:
            raise ValueError("must be at most half of REBASE_LEASE_S")
        return value

    @property
    def resolved_hard_time_limit_s(self) -> int:
        """When a job's process is killed, in seconds after its start."""
        return self.hard_time_limit_s or self.soft_time_limit_s + 300

    @property
    def resolved_home(self) -> Path:
        """`home` as an absolute path."""
        return self.home.expanduser().absolute()

    @property
    def resolved_database_url(self) -> str:
        """The database in use; PostgreSQL URLs are given the psycopg driver."""
        url = self.database_url or f"sqlite:///{self.resolved_home / 'rebase.db'}"
        for prefix in ("postgres://", "postgresql://"):
            if url.startswith(prefix):
                return "postgresql+psycopg://" + url.removeprefix(prefix)
        return url

    @property
    def resolved_broker_url(self) -> str:
        """The Celery broker in use."""
        if self.broker_url:
            return self.broker_url
        return self.redis_url.get_secret_value() if self.redis_url else "filesystem://"

    @property
    def broker_dir(self) -> Path:
        """Folder of the filesystem transport."""
        return self.resolved_home / "broker"

    @property
    def resolved_cache_dir(self) -> Path:
        """Folder of the factor cache's disk tier."""
        return self.cache_dir or self.resolved_home / "cache"

    @property
    def resolved_work_dir(self) -> Path:
        """Folder for running jobs' scratch files."""
        return self.work_dir or self.resolved_home / "work"


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
