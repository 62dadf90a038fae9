"""The pre-check: a verdict with findings before any expensive work. `rebase.precheck(...)` runs it."""

from rebase._callable_package import make_callable

make_callable(__name__, "rebase.conversion.api:precheck")
