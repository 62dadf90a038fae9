"""Kombu's broker in a folder, for the embedded deployment, without its race between writer and reader.

Kombu creates a message's file under its final name and fills it afterwards. A worker that looks in between
takes an empty message, fails to read it and ends. Here a file has its name when it is whole. The table of
queues is written in place, so whoever finds it empty looks again.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import filesystem
from kombu.utils.json import dumps

_MAX_READS = 100
_READ_PAUSE_S = 0.01


class Channel(filesystem.Channel):
    """Messages come into sight whole."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Put one message onto the queue. Raises ChannelError when the folder cannot be written."""
        folder = Path(self.data_folder_out)
        # Readers take names in their order, and only those that end in the queue's.
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        draft = folder / f"{name}.draft"
        try:
            draft.write_bytes(dumps(payload).encode())  # type: ignore[no-untyped-call]
            draft.replace(folder / name)
        except OSError as exc:
            raise ChannelError(f"Cannot add file '{name}' to the folder of messages") from exc

    def get_table(self, exchange: str) -> list[Any]:
        """The queues of an exchange; empty where it has none yet."""
        for _ in range(_MAX_READS):
            try:
                table: list[Any] = super().get_table(exchange)  # type: ignore[no-untyped-call]
            except ValueError:  # another process is about to write it
                time.sleep(_READ_PAUSE_S)
            else:
                return table
        raise ChannelError(f"The table of the exchange '{exchange}' cannot be read")


class Transport(filesystem.Transport):
    """What Celery is given for `filesystem://`."""

    Channel = Channel
