"""An operator finds every setting explained."""

from __future__ import annotations

import re
from pathlib import Path

from rebase.settings import Settings

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def test_every_setting_says_what_it_does() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_operations_page_names_no_setting_that_does_not_exist() -> None:
    compose_only = {
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
        "REDIS_MAXMEMORY",
        "PUBLISH",
        "GPU",
        "TEST_REDIS_URL",
        "API_KEY",  # the client's own
        "URL",
    }
    named = set(re.findall(r"REBASE_([A-Z_]+[A-Z])", OPERATIONS)) - compose_only
    assert {name.lower() for name in named} <= set(Settings.model_fields)
    assert named
