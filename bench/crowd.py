"""Many people on the Cohort page at once: clients that speak Streamlit's protocol, as fifty browsers would measure
themselves.

Each opens the page and, after some seconds of looking, asks for another organ and other ages, in its own order. What it
is told must be what somebody alone is told who asks for the same.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect

from agg2exp_core.settings import SHIPPED
from bench import synthetic
from bench.browser import Server, server

SESSIONS, SECONDS, CASES = 50, 120.0, 1_200
LOOKING = (5.0, 15.0)
"""Seconds between what one asks for and the next."""

ORGANS = ("heart", "aorta", "ribs", "trachea", "sternum")
AGES = ("20~60", "30~70", "40~85")
MOST_BYTES = 2**26
WARM = 10
"""Sessions that come and go first: what a server keeps for all of them is no growth."""


def main() -> list[tuple[str, str]]:
    """Rows of figure name and value, for the demo and a synthetic run."""
    rows = _measured("demo", SHIPPED, "reference")
    with tempfile.TemporaryDirectory() as folder:
        synthetic.write_root(Path(folder), CASES)
        return rows + _measured(f"{CASES:,} × 17 × 17", Path(folder), synthetic.COHORT)


def _measured(name: str, root: Path, cohort: str) -> list[tuple[str, str]]:
    with server(root) as running:
        crowd = asyncio.run(_crowd(running, cohort))
    grown = crowd.memory[1] / crowd.memory[0] - 1
    times = f"median {np.median(crowd.times):.2f} s, p95 {np.quantile(crowd.times, 0.95):.2f} s of {len(crowd.times)}"
    return [
        (f"{SESSIONS} sessions for {SECONDS:.0f} s, {name}: a rerun", times),
        (f"{SESSIONS} sessions, {name}: memory at the first answers and at the end", _megabytes(crowd, grown)),
        (f"{SESSIONS} sessions, {name}: answers that are not those of somebody alone", str(crowd.strange)),
    ]


@dataclass
class Crowd:
    """Seconds of each rerun, answers that were another's, and bytes of the server once all are there and at the end."""

    times: list[float] = field(default_factory=list)
    strange: int = 0
    memory: tuple[int, int] = (1, 1)


def _megabytes(crowd: Crowd, grown: float) -> str:
    first, last = crowd.memory
    return f"{first / 1e6:.0f} MB, {last / 1e6:.0f} MB ({grown:+.1%})"


async def _crowd(running: Server, cohort: str) -> Crowd:
    links = [f"cohort={cohort}&target={organ}&in.age={ages}" for organ, ages in product(ORGANS, AGES)]
    crowd, alone = Crowd(), {}
    for link in links:
        async with _visit(running.url) as session:
            alone[link] = await _ask(session, link)
    if len({*map(tuple, alone.values())}) < len(links):
        raise RuntimeError("different links gave the same page, so that a mix-up would not show")
    await asyncio.gather(*(_leave_at_once(running.url, links[n % len(links)]) for n in range(WARM)))
    until = time.monotonic() + SECONDS
    people = [asyncio.create_task(_person(running.url, alone, crowd, random.Random(n), until)) for n in range(SESSIONS)]
    await asyncio.sleep(LOOKING[1])
    first = running.memory()
    await asyncio.gather(*people)
    crowd.memory = first, running.memory()
    return crowd


def _visit(url: str) -> connect:
    address = url.replace("http", "ws", 1) + "/_stcore/stream"
    return connect(address, subprotocols=["streamlit"], max_size=MOST_BYTES)  # type: ignore[list-item]


async def _leave_at_once(url: str, link: str) -> None:
    async with _visit(url) as session:
        await _ask(session, link)


async def _person(url: str, alone: dict[str, list[str]], crowd: Crowd, chance: random.Random, until: float) -> None:
    await asyncio.sleep(chance.uniform(0, LOOKING[0]))
    async with _visit(url) as session:
        while time.monotonic() < until:
            link = chance.choice([*alone])
            started = time.perf_counter()
            told = await _ask(session, link)
            crowd.times.append(time.perf_counter() - started)
            crowd.strange += told != alone[link]
            await asyncio.sleep(chance.uniform(*LOOKING))


async def _ask(session: ClientConnection, link: str) -> list[str]:
    """What the page says, once it has been drawn to its end from a link."""
    asking = BackMsg()
    asking.rerun_script.query_string = link
    await session.send(asking.SerializeToString())
    told: dict[tuple[int, ...], str] = {}
    while True:
        message = ForwardMsg.FromString(await session.recv())
        if message.WhichOneof("type") == "script_finished":
            return [text for _, text in sorted(told.items())]
        if message.WhichOneof("type") == "delta":
            element = message.delta.new_element
            if element.WhichOneof("type") == "markdown":
                told[tuple(message.metadata.delta_path)] = element.markdown.body


if __name__ == "__main__":
    for name, value in main():
        print(f"{name:<75} {value}", flush=True)
