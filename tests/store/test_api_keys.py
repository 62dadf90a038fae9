"""A key's life: scope, expiry, rotation with an overlap, last use, end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from rebase.errors import NotFound, RequestInvalid, StateConflict
from rebase.schemas.api_keys import Scope
from rebase.store import api_keys as keys
from rebase.store.audit import AuditContext, list_audit_events
from rebase.store.store import Store
from support.databases import HandClock

DAY = timedelta(days=1)


def _known(store: Store, key: str) -> keys.Identity:
    known = keys.identify_key(store, key)
    assert known is not None
    return known


def test_each_scope_implies_those_below_it() -> None:
    assert [[have.allows(need) for need in Scope] for have in Scope] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_a_key_stands_for_its_tenant_and_scope_until_it_expires(store: Store, clock: HandClock) -> None:
    made = keys.issue_key(store, "acme", "ci", Scope.READ, 7 * DAY)
    known = _known(store, made.key)

    assert (known.tenant_id, known.scope) == ("acme", Scope.READ)
    assert known.expires_at == clock() + 7 * DAY
    assert keys.identify_key(store, made.key + "x") is None


def test_rotation_gives_a_like_key_and_leaves_the_old_one_for_the_overlap(
    store: Store, clock: HandClock
) -> None:
    old = keys.issue_key(store, "acme", "ci", Scope.CONVERT, 30 * DAY)
    clock.move(10 * DAY.total_seconds())

    new = keys.rotate_key(store, old.record.id, timedelta(hours=2), audit=AuditContext("acme"))

    assert (new.record.name, new.record.scope, new.record.tenant_id) == ("ci", "convert", "acme")
    assert new.record.expires_at == clock() + 30 * DAY
    assert _known(store, old.key).expires_at == clock() + timedelta(hours=2)
    assert [line.action for line in list_audit_events(store.db, "acme")] == ["key.rotated"]


def test_rotation_never_lengthens_the_old_keys_life(store: Store, clock: HandClock) -> None:
    old = keys.issue_key(store, "acme", "ci", Scope.CONVERT, timedelta(hours=1))
    keys.rotate_key(store, old.record.id, DAY)

    assert _known(store, old.key).expires_at == clock() + timedelta(hours=1)


def test_a_key_without_an_end_is_rotated_into_one_without_an_end(store: Store, clock: HandClock) -> None:
    old = keys.issue_key(store, "acme", "ci")
    new = keys.rotate_key(store, old.record.id)

    assert new.record.expires_at is None
    assert _known(store, old.key).expires_at == clock() + keys.DEFAULT_OVERLAP


@pytest.mark.parametrize("life", [None, 30 * DAY])
def test_a_key_is_rotated_once_and_then_the_one_that_took_its_place(
    store: Store, clock: HandClock, life: timedelta | None
) -> None:
    old = keys.issue_key(store, "acme", "ci", expires_in=life)
    second = keys.rotate_key(store, old.record.id)
    clock.move(3600)
    with pytest.raises(StateConflict, match="already rotated") as refused:
        keys.rotate_key(store, old.record.id)
    assert refused.value.hint == "Rotate that one, or create a new one."
    assert _known(store, old.key).expires_at == clock() + timedelta(hours=23)

    third = keys.rotate_key(store, second.record.id)

    assert third.record.expires_at == (clock() + life if life is not None else None)
    rotated = [key.rotated_at is not None for key in keys.list_keys(store, "acme")]
    assert rotated == [True, True, False]


def test_rotations_of_one_key_that_meet_make_one_successor(store: Store) -> None:
    old = keys.issue_key(store, "acme", "ci")

    def rotate(_: int) -> bool:
        try:
            keys.rotate_key(store, old.record.id)
        except StateConflict:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(rotate, range(4))) == 1


def test_what_has_ended_or_is_anothers_cannot_be_rotated(store: Store, clock: HandClock) -> None:
    ended, expired, theirs = (
        keys.issue_key(store, name, "key", expires_in=DAY) for name in ("acme", "acme", "rival")
    )
    keys.revoke_key(store, ended.record.id)
    with pytest.raises(StateConflict):
        keys.rotate_key(store, ended.record.id)
    with pytest.raises(NotFound):
        keys.rotate_key(store, theirs.record.id, tenant="acme")
    with pytest.raises(NotFound):
        keys.revoke_key(store, theirs.record.id, tenant="acme")
    clock.move(DAY.total_seconds())
    with pytest.raises(StateConflict):
        keys.rotate_key(store, expired.record.id)


@pytest.mark.parametrize("key_id", ["", "a\0b", "x" * 32, "\ud800"])
def test_an_id_that_no_key_can_have_is_not_found(store: Store, key_id: str) -> None:
    with pytest.raises(NotFound):
        keys.rotate_key(store, key_id, tenant="acme")
    with pytest.raises(NotFound):
        keys.revoke_key(store, key_id, tenant="acme")


def test_last_use_is_noted_once_an_hour(store: Store, clock: HandClock) -> None:
    made = keys.issue_key(store, "acme", "ci")
    first = clock()
    keys.identify_key(store, made.key)
    clock.move(3000)
    keys.identify_key(store, made.key)
    assert keys.list_keys(store, "acme")[0].last_used_at == first

    clock.move(1000)
    keys.identify_key(store, made.key)
    assert keys.list_keys(store, "acme")[0].last_used_at == clock()


@pytest.mark.parametrize("life", [timedelta(seconds=1), timedelta(days=5000), timedelta(days=-1)])
def test_a_life_too_short_or_too_long_is_refused(store: Store, life: timedelta) -> None:
    with pytest.raises(RequestInvalid):
        keys.issue_key(store, "acme", "ci", expires_in=life)
