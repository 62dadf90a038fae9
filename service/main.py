"""`uvicorn service.main:app`: the app for the settings of this process."""

from __future__ import annotations

from rebase.logging import configure_logging
from rebase.settings import get_settings
from service.app import create_app

configure_logging(get_settings())
app = create_app(get_settings())
