"""Exit codes, the CLI's own errors, and the mapping from any exception to an exit code and a public
record."""

from __future__ import annotations

from enum import IntEnum

from pydantic import ValidationError

from rebase.client.errors import ServiceError, ServiceUnreachable
from rebase.errors import PublicError, RebaseError, TransferError, Unauthorized, to_public_error


class Exit(IntEnum):
    """Exit codes of the command. 130 (interrupted) is the shell's convention."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INCOMPATIBLE = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


_EXIT_BY_CODE: dict[str, Exit] = {
    "request_invalid": Exit.USAGE,
    "not_available": Exit.USAGE,
    "incompatible": Exit.INCOMPATIBLE,
    "incompatible_pair": Exit.INCOMPATIBLE,
    "worse_than_target": Exit.INCOMPATIBLE,
    "nothing_better": Exit.INCOMPATIBLE,
    "service_unreachable": Exit.UNREACHABLE,
}
_KEY_HINT = (
    "Set REBASE_API_KEY to a key of this service; `rebase keys create`, run where the service runs, "
    "creates one."
)


def exit_for_code(code: str) -> Exit:
    """The exit code for a public error code; unlisted ones are plain failures."""
    return _EXIT_BY_CODE.get(code, Exit.FAILED)


def exit_for_exception(exc: Exception) -> tuple[Exit, PublicError] | None:
    """Exit code and record of an expected error; None for an unexpected one."""
    if isinstance(exc, ServiceError | ServiceUnreachable):
        error = exc.error
        if error.code == Unauthorized.code:  # the service's hint is about headers
            error = error.model_copy(update={"hint": _KEY_HINT})
        return exit_for_code(error.code), error
    if isinstance(exc, RebaseError | TransferError):
        error = to_public_error(exc)
        return exit_for_code(error.code), error
    if isinstance(exc, ValidationError) and exc.title == "Settings":
        return Exit.USAGE, _build_setting_error(exc)
    return None


def _build_setting_error(exc: ValidationError) -> PublicError:
    """Names the invalid environment variable but never its value, which may be a secret."""
    first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    name = "_".join(str(part) for part in first["loc"])
    return PublicError(
        code="setting_invalid",
        message=f"REBASE_{name.upper()}: {first['msg']}",
        hint="Settings come from the environment and from a .env file in the working directory.",
    )
