"""Settings that only make sense together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rebase.settings import Settings
from rebase.store.broker import make_celery


def test_raising_the_soft_time_limit_alone_leaves_it_below_the_hard_one() -> None:
    settings = Settings(_env_file=None, soft_time_limit_s=100_000, broker_url="memory://")

    conf = make_celery(settings).conf
    assert (conf.task_soft_time_limit, conf.task_time_limit) == (100_000, 100_300)


@pytest.mark.parametrize("given", [{"lease_s": 6.0}, {"heartbeat_s": 50.0}])
def test_a_heart_too_slow_for_its_lease_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="half of REBASE_LEASE_S") as caught:
        Settings(_env_file=None, **given)
    assert caught.value.errors()[0]["loc"] == ("heartbeat_s",)
