"""docker-compose.yml, checked without a Docker engine."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rebase.settings import Settings
from support import compose

SECRETS = {
    "REBASE_POSTGRES_PASSWORD": "p0stgres",
    "REBASE_REDIS_PASSWORD": "r3dis",
    "REBASE_HUB_TOKEN": "hf_token",
    "REBASE_SECRET_KEYS": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I=",
}
OPTIONAL = {"REBASE_WEBHOOK_SECRET": "hook"}
STACK = compose.load(SECRETS | OPTIONAL)
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
OURS = ["migrate", "api", "courier", "worker", "worker-cpu"]
LASTING = [name for name in SERVICES if name != "migrate"]

# What the compose specification knows, as far as this file uses it; docker refuses a misspelt key.
_SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "init",
    "ports", "profiles", "read_only", "restart", "security_opt", "shm_size", "stop_grace_period",
    "tmpfs", "volumes",
}  # fmt: skip
_HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period", "disable"}
_DURATION = re.compile(r"^(\d+(us|ms|s|m|h))+$")


def test_every_key_is_one_of_the_specification() -> None:
    assert {key for key in STACK if not key.startswith("x-")} == {"name", "services", "volumes"}
    for name, service in SERVICES.items():
        assert set(service) <= _SERVICE_KEYS, name
        health = service.get("healthcheck", {})
        assert set(health) <= _HEALTH_KEYS, name
        durations = [service.get("stop_grace_period"), *(health.get(k) for k in ("interval", "timeout"))]
        assert all(_DURATION.match(d) for d in durations if d), name


@pytest.mark.parametrize("name", SECRETS)
def test_nothing_starts_while_a_secret_is_unset(name: str) -> None:
    with pytest.raises(compose.Unset, match=name):
        compose.load({**SECRETS, name: ""})


def test_every_secret_comes_from_the_operator() -> None:
    other = compose.load({name: value * 2 for name, value in (SECRETS | OPTIONAL).items()})["services"]
    seen = []
    for name, service in SERVICES.items():
        for key, value in service["environment"].items():
            if re.search("PASSWORD|TOKEN|CLI_AUTH|URL|SECRET", key):
                seen.append(key)
                assert value != other[name]["environment"][key], f"{name}: {key}"
    assert len(set(seen)) == 7
    assert SERVICES["redis"]["command"] != other["redis"]["command"]


def test_every_variable_of_the_file_is_explained_in_the_example() -> None:
    used = set(re.findall(r"\$\{(\w+)|^  (REBASE_\w+):$", compose.FILE.read_text(), re.MULTILINE))
    explained = set(
        re.findall(r"^#? ?(REBASE_\w+)=", (compose.FILE.parent / ".env.example").read_text(), re.MULTILINE)
    )
    assert {name or passed for name, passed in used} == explained


@pytest.mark.parametrize("name", ["api", "worker", "worker-cpu"])
def test_limits_retention_and_looks_are_set_in_the_operators_file(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {
        "REBASE_TENANT_MAX_RUNNING": "2",
        "REBASE_TENANT_MAX_QUEUED": "3",
        "REBASE_TENANT_JOBS_PER_DAY": "4",
        "REBASE_TENANT_REQUESTS_PER_MINUTE": "5",
        "REBASE_SHARE_HUB_TOKEN": "true",
        "REBASE_KEEP_JOBS_DAYS": "6",
        "REBASE_KEEP_EVENTS_DAYS": "7",
        "REBASE_KEEP_AUDIT_DAYS": "8",
        "REBASE_RECONCILE_S": "9",
    }
    for key, value in compose.load({**SECRETS, **chosen})["services"][name]["environment"].items():
        monkeypatch.setenv(key, value)
    settings = Settings(_env_file=None).model_dump()
    found = {key: settings[key.removeprefix("REBASE_").lower()] for key in chosen}
    assert found == {key: True if value == "true" else float(value) for key, value in chosen.items()}


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_configured_by_settings_that_exist(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = SERVICES[name]["environment"]
    assert {key.removeprefix("REBASE_").lower() for key in environment} <= set(Settings.model_fields)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    settings = Settings(_env_file=None)
    assert settings.resolved_database_url == "postgresql+psycopg://rebase:p0stgres@postgres:5432/rebase"
    assert settings.resolved_broker_url == "redis://:r3dis@redis:6379/0"


def test_the_api_asks_for_keys_and_is_published_on_loopback_only() -> None:
    assert SERVICES["api"]["environment"]["REBASE_AUTH"] == "keys"
    assert SERVICES["api"]["ports"] == ["127.0.0.1:8000:8000"]
    assert [name for name in SERVICES if "ports" in SERVICES[name]] == ["api"]


@pytest.mark.parametrize("name", LASTING)
def test_every_lasting_service_restarts_reports_its_health_and_is_given_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["stop_grace_period"]


def test_migrations_run_once_and_before_anything_that_uses_tables() -> None:
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "courier", "worker", "worker-cpu"):
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        assert SERVICES[name]["depends_on"]["redis"] == {"condition": "service_healthy"}


def test_dependencies_and_volumes_are_declared() -> None:
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("/") or source in STACK["volumes"], name


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_no_privileges_to_lose(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True


def test_a_gpu_is_reserved_for_the_worker_and_none_for_the_cpu_profile() -> None:
    (device,) = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert SERVICES["worker"]["environment"]["REBASE_DEVICE"] == "cuda"
    assert SERVICES["worker-cpu"]["profiles"] == ["cpu"]
    assert SERVICES["worker-cpu"]["environment"]["REBASE_DEVICE"] == "cpu"
    assert "deploy" not in SERVICES["worker-cpu"]
    different = {"profiles", "environment", "deploy"}
    assert all(
        SERVICES["worker"].get(key) == SERVICES["worker-cpu"].get(key) for key in _SERVICE_KEYS - different
    )


def test_workers_share_the_cache_but_not_the_folder_that_says_they_are_alive() -> None:
    assert SERVICES["worker"]["volumes"] == ["cache:/var/lib/rebase", "/var/lib/rebase/work"]


def test_foreign_images_are_pinned_by_digest_and_ours_are_built() -> None:
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["build"]["target"] == ("worker" if name.startswith("worker") else "api")
        else:
            assert re.fullmatch(r"[a-z]+:\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", service["image"]), name


def test_redis_evicts_cached_factors_only_and_never_the_queue() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "volatile-lru"
