"""How many conversions per second does POST /convert accept, next to a bare route on the same PostgreSQL?

    python -m benchmarks.load [--seconds 4] [--rounds 5] [--clients 50]

One fresh PostgreSQL database and one Redis; the service as deployed (uvicorn, keeper and relay ringing a real
broker, JSON logs) and `benchmarks.bare_route` under the same server options. Rounds alternate between
the two, so that whatever else the machine does hits both. The ratio is the median over rounds. Clients that
saturate a server measure their own queue, so latency is measured once more at a fixed rate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import migrations  # noqa: E402
from benchmarks.processes import free_port  # noqa: E402
from support.postgres import a_database, a_postgres  # noqa: E402
from support.redis_server import own_redis  # noqa: E402

PACED_RPS = 250.0  # by 50 connections; under half of what the bare route was seen to bear on two shared cores

_UVICORN = """
import sys, uvicorn
from benchmarks.bare_route import app
uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False, server_header=False)
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One side's answers in one round; latencies in ms, sorted."""

    ms: list[float]
    refused: int
    rps: float

    def percentile(self, share: float) -> float:
        return self.ms[min(len(self.ms) - 1, int(len(self.ms) * share))]


@contextmanager
def _server(command: list[str], port: int, probe: str, log: Path, **env: str) -> Iterator[None]:
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=sink, stderr=sink)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{probe}", timeout=2).close()
                break
            except OSError as exc:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(log.read_text()[-2000:]) from exc
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(20)


def _drive(port: int, seconds: float, clients: int, rate: float = 0.0) -> Round:
    numbers = [str(port), str(seconds), str(clients), str(rate)]
    command = [sys.executable, "-m", "benchmarks.load_client", *numbers]
    answer = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    return Round(answer["ms"], answer["refused"], len(answer["ms"]) / answer["seconds"])


def measure(seconds: float, rounds: int, clients: int) -> dict[str, list[Round]]:
    """Alternating rounds of both sides, after one short warm-up each."""
    found: dict[str, list[Round]] = {"ours": [], "bare": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(a_database(stack.enter_context(a_postgres())))
        redis = stack.enter_context(own_redis())
        migrations.upgrade(database)
        ports = {"ours": free_port(), "bare": free_port()}
        ours = [sys.executable, "-m", "service"]
        settings = {
            "REBASE_DATABASE_URL": database,
            "REBASE_BROKER_URL": redis,
            "REBASE_HOME": str(folder),
            "REBASE_PORT": str(ports["ours"]),
            "REBASE_LOG_FORMAT": "json",
        }
        bare = [sys.executable, "-c", _UVICORN, str(ports["bare"])]
        stack.enter_context(_server(ours, ports["ours"], "/readyz", folder / "ours.log", **settings))
        stack.enter_context(
            _server(bare, ports["bare"], "/docs", folder / "bare.log", BARE_DATABASE_URL=database)
        )
        for side in found:
            _drive(ports[side], 1.0, clients)
        for number in range(rounds):
            for side in sorted(found, reverse=bool(number % 2)):
                found[side].append(_drive(ports[side], seconds, clients))
        for side in ("ours", "bare"):
            found[f"{side}, paced"] = [
                _drive(ports[side], seconds, clients, PACED_RPS) for _ in range(rounds)
            ]
    return found


def _together(rounds: list[Round]) -> Round:
    """All answers of several rounds, for percentiles."""
    return Round(sorted(ms for one in rounds for ms in one.ms), 0, 0.0)


def summary(found: dict[str, list[Round]], clients: int) -> dict[str, float | int]:
    """The figures: medians over rounds, and percentiles over all answers of our side."""
    ours, bare = found["ours"], found["bare"]
    everything, bare_all = _together(ours), _together(bare)
    return {
        "ours_rps": round(statistics.median(one.rps for one in ours), 1),
        "bare_rps": round(statistics.median(one.rps for one in bare), 1),
        "ratio": round(statistics.median(a.rps / b.rps for a, b in zip(ours, bare, strict=True)), 3),
        "p50_ms": everything.percentile(0.5),
        "p99_ms": everything.percentile(0.99),
        "bare_p50_ms": bare_all.percentile(0.5),
        "bare_p99_ms": bare_all.percentile(0.99),
        "paced_rps": PACED_RPS,
        "paced_p99_ms": _together(found["ours, paced"]).percentile(0.99),
        "paced_bare_p99_ms": _together(found["bare, paced"]).percentile(0.99),
        "refused": sum(one.refused for one in ours),
        "clients": clients,
        "rounds": len(ours),
    }


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=50)
    options = parser.parse_args()
    found = measure(options.seconds, options.rounds, options.clients)
    print(f"{'round':>5}  {'side':<11} {'rps':>8} {'p50 ms':>8} {'p99 ms':>8} {'refused':>8}")
    for number in range(options.rounds):
        for side, rounds in found.items():
            one = rounds[number]
            print(
                f"{number:>5}  {side:<11} {one.rps:>8.1f} {one.percentile(0.5):>8.2f}"
                f" {one.percentile(0.99):>8.2f} {one.refused:>8}"
            )
    print(json.dumps(summary(found, options.clients)))


if __name__ == "__main__":
    main()
