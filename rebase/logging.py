"""Structured logs on stderr: one line per event, with the ids of the request and job it belongs to.

Secrets are redacted: values under secret-looking names, and anything that looks like one of our keys or a Hub
token.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

from rebase.redaction import REDACTED, SECRET_NAMES, scrub_value
from rebase.settings import Settings

_FORMATTER_KEYS = frozenset({"_record", "_from_structlog"})  # used and dropped by the formatter
_NOISY_LOGGERS = (
    "alembic",
    "httpx2",
    "kombu",
    "amqp",
)  # they log a line per request or start-up step


def configure_logging(settings: Settings) -> None:
    """Set up structlog and the standard library's logging; a second call replaces the first."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact_event,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=[_drop_meta, renderer], foreign_pre_chain=processors)
    )
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler], force=True)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def get_logger(name: str) -> Any:
    """A logger whose lines carry `component=name`."""
    return structlog.get_logger(component=name)


@contextmanager
def bind_log_context(**values: Any) -> Iterator[None]:
    """Add these values to every line logged inside the block."""
    with structlog.contextvars.bound_contextvars(**values):
        yield


def redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact secrets in one event, by name and by pattern, at any depth."""
    for name, value in event.items():
        if name in _FORMATTER_KEYS:
            continue
        event[name] = REDACTED if name.lower() in SECRET_NAMES else scrub_value(value)
    return event


def _drop_meta(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.pop("_record", None)
    event.pop("_from_structlog", None)
    return event
