"""What `benchmarks.load` compares with: a FastAPI route that inserts one row and does nothing else.

Same framework, same server, same driver, pool and database as the service; URL in BARE_DATABASE_URL.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from sqlalchemy import JSON, BigInteger, Column, MetaData, Table, create_engine, insert

bare = Table(
    "bare", MetaData(), Column("id", BigInteger, primary_key=True), Column("body", JSON, nullable=False)
)
engine = create_engine(os.environ["BARE_DATABASE_URL"], pool_size=10, max_overflow=0)
bare.metadata.create_all(engine)
app = FastAPI()


@app.post("/convert", status_code=202)
def accept(body: dict[str, Any]) -> dict[str, int]:
    """One row in, its id out."""
    with engine.begin() as connection:
        (row_id,) = connection.execute(insert(bare).values(body=body)).inserted_primary_key or (0,)
    return {"id": row_id}
