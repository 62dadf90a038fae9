"""The old name of `python -m service.callbacks`, kept for one release."""

from __future__ import annotations

from service.callbacks.__main__ import main

if __name__ == "__main__":
    main()
