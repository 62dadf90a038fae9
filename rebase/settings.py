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
    """The defaults give an embedded deployment; production sets the URLs and paths."""

    model_config = SettingsConfigDict(env_prefix="REBASE_", env_file=".env", extra="ignore")

    home: Path = Field(
        default=_DEFAULT_HOME, description="Default folder for everything without a setting of its own."
    )
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL; default: SQLite inside `home`."
    )
    broker_url: str | None = Field(
        default=None, description="Celery broker URL; default: `redis_url`, else a folder in `home`."
    )
    redis_url: SecretStr | None = Field(
        default=None, description="Redis URL; enables the Redis tier of the factor cache."
    )

    hub_dir: Path | None = Field(default=None, description="Use this local hub folder instead of the Hub.")
    hub_token: SecretStr | None = Field(default=None, description="Token for the Hub; never logged.")

    secret_keys: SecretStr | None = Field(
        default=None,
        description=(
            "Keys that encrypt secrets at rest, comma-separated: the first encrypts, all of them decrypt. "
            "`rebase secrets key` generates one. Default: a key file inside `home`, on SQLite only."
        ),
    )

    webhook_secret: SecretStr | None = Field(
        default=None,
        description=(
            "Accepted secrets of the Hub's webhooks (`X-Webhook-Secret`), comma-separated, so that old and "
            "new ones both work during rotation. Unset: webhooks are disabled."
        ),
    )
    reconcile_s: float = Field(
        default=3600.0,
        ge=0,
        description="How often the models of each subscription's owner are checked for releases that no "
        "webhook reported; 0 = off.",
    )

    host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port that the API listens on.")
    auth: Literal["none", "keys"] = Field(default="none", description="`none` is allowed on loopback only.")
    max_body_bytes: int = Field(
        default=256 * 1024, ge=1024, description="Larger request bodies are rejected."
    )

    share_hub_token: bool = Field(
        default=False,
        description=(
            "Let jobs of every tenant use `hub_token` if neither the request nor the tenant has a token of "
            "its own. Otherwise only jobs of the tenant `default` use it."
        ),
    )
    tenant_max_running: int | None = Field(
        default=None,
        ge=1,
        description="Maximum concurrent jobs per tenant; further jobs wait. Null: no limit. "
        "`rebase tenants set` overrides this and the next three settings for one tenant.",
    )
    tenant_max_queued: int | None = Field(
        default=None, ge=1, description="Maximum unfinished jobs per tenant; more are rejected with 429."
    )
    tenant_jobs_per_day: int | None = Field(
        default=None, ge=1, description="Maximum jobs that one tenant may submit within 24 hours."
    )
    tenant_requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Maximum requests per tenant when API keys are required; counted in Redis if configured.",
    )

    keep_jobs_days: float | None = Field(
        default=None,
        gt=0,
        description="Jobs that ended longer ago are deleted with everything that belongs to them; null keeps "
        "them. Registered anchor pools are kept.",
    )
    keep_events_days: float | None = Field(
        default=None,
        gt=0,
        description="The same for events of ended jobs and their callbacks; state transitions are kept.",
    )
    keep_audit_days: float | None = Field(default=None, gt=0, description="The same for audit log entries.")

    cache_dir: Path | None = Field(default=None, description="Disk cache folder; default inside `home`.")
    cache_max_bytes: int = Field(
        default=20 * 2**30, ge=0, description="Size limit of the disk cache (LRU eviction); 0 = off."
    )
    redis_cache_ttl_s: int = Field(
        default=7 * 24 * 3600, ge=1, description="How long Redis keeps a cached factor."
    )
    redis_cache_max_entry_bytes: int = Field(
        default=64 * 2**20, ge=0, description="Larger factors are cached on disk only."
    )
    work_dir: Path | None = Field(
        default=None, description="Scratch space of running jobs; default inside `home`."
    )

    tasks_dir: Path | None = Field(
        default=None,
        description=(
            "Folder with task files for lm-evaluation-harness; requests may use their names in addition to "
            "the harness's own. Task files can reference code, so protect the folder like this program."
        ),
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where workers compute; `auto` uses a GPU if there is one."
    )
    model_bytes: int | None = Field(
        default=None,
        ge=0,
        description=(
            "Memory for running base models; null uses most of what is free. Bases that do not fit "
            "together run one after the other, and one that does not fit alone is streamed layer by layer."
        ),
    )
    activation_bytes: int = Field(
        default=4 * 2**30, ge=0, description="Memory for sums over activations; less means more passes."
    )
    lease_s: float = Field(
        default=60.0, gt=0, description="A worker without a heartbeat for this long loses its job."
    )
    heartbeat_s: float = Field(
        default=5.0,
        gt=0,
        validate_default=True,
        description="How often a worker renews its lease and checks for cancellation.",
    )
    sweep_s: float = Field(
        default=5.0,
        gt=0,
        description="How often the scheduler publishes the outbox, cleans up and expires leases.",
    )
    max_attempts: int = Field(default=3, ge=1, description="Maximum attempts per job before it fails.")
    retry_base_s: float = Field(
        default=10.0, ge=0, description="Delay before the second attempt; doubles each time."
    )
    soft_time_limit_s: int = Field(
        default=6 * 3600, ge=1, description="A job that runs longer fails with `time_limit`."
    )
    hard_time_limit_s: int | None = Field(
        default=None,
        ge=1,
        description="A job still running then is killed; default: five minutes after the soft limit.",
    )

    log_format: Literal["console", "json"] = Field(
        default="console", description="`json` writes one object per line."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Minimum severity of logged messages."
    )

    callback_allow: str = Field(
        default="",
        description=(
            "Hosts, addresses and networks that callbacks may reach besides public https, comma-separated; "
            "plain http is allowed for them. A listed name is trusted whatever it resolves to."
        ),
    )
    callback_waits_s: str = Field(
        default=DEFAULT_DELAYS,
        description="Delays in seconds before each retry of a callback; after the last one it is abandoned.",
    )
    callback_timeout_s: float = Field(
        default=15.0, gt=0, le=60, description="Timeout of one callback attempt, including DNS."
    )
    callback_secret_overlap_s: int = Field(
        default=24 * 3600, ge=0, description="How long a replaced signing secret continues to sign."
    )
    callback_ca_file: Path | None = Field(
        default=None, description="Additional CA certificates (PEM) to trust for callbacks."
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
        """One late heartbeat must not cost the job."""
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
        """The database URL in use; PostgreSQL URLs get the psycopg driver."""
        url = self.database_url or f"sqlite:///{self.resolved_home / 'rebase.db'}"
        for prefix in ("postgres://", "postgresql://"):
            if url.startswith(prefix):
                return "postgresql+psycopg://" + url.removeprefix(prefix)
        return url

    @property
    def resolved_broker_url(self) -> str:
        """The Celery broker URL in use."""
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
        """Folder for scratch files of running jobs."""
        return self.work_dir or self.resolved_home / "work"


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once and cached."""
    return Settings()
