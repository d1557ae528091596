"""A consumer as a process of its own: one JSON line for each version, and for each change of its state.

python consumer.py PATH RECHECK [MODE [SECONDS BETWEEN TWO TRIES TO GET EVENTS AGAIN]]
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Literal, cast

from sidecar.process import metrics
from sidecar.volume.watch import thread
from sidecar.volume.watch.watch import Watch

Mode = Literal["auto", "inotify", "watchfiles", "poll"]


def value(name: str) -> float:
    return metrics.REGISTRY.get_sample_value(name) or 0.0


async def main(path: str, recheck: float, mode: Mode) -> None:
    async with Watch(path, recheck=recheck, watch=mode) as watch:
        last = ""
        while True:
            line = json.dumps(
                {
                    "text": watch.snapshot.text() if watch.snapshot else None,
                    "mode": watch.mode,
                    "fallback": watch.fallback,
                    "stale": watch.stale,
                    "errors": value("sidecar_watch_errors_total"),
                    "rescues": value("sidecar_poll_rescues_total"),
                }
            )
            if line != last:
                print(line, flush=True)
                last = line
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="LOG %(levelname)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    arguments = [*sys.argv[1:4], "auto"]
    if len(sys.argv) > 4:
        thread._REARM_DELAY = float(sys.argv[4])
    asyncio.run(main(arguments[0], float(arguments[1]), cast(Mode, arguments[2])))
