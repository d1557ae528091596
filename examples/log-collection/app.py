"""An application as many are: it writes log files, rotates them, and knows nothing of collectors."""

import json
import logging
import os
import signal
import threading
import time
from logging.handlers import RotatingFileHandler

path = os.environ.get("LOG_FILE", "/var/log/app/app.log")
rate = float(os.environ.get("LINES_PER_SECOND", "10"))
limit = int(os.environ.get("LINES", "0"))


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
                "level": record.levelname.lower(),
                "msg": record.getMessage(),
            }
        )


def main() -> None:
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Renames app.log to app.log.1, app.log.1 to app.log.2, … and deletes the fourth: the collector has to keep up.
    handler = RotatingFileHandler(path, maxBytes=64 * 1024, backupCount=3)
    handler.setFormatter(Json())
    log = logging.getLogger("shop")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    number = 0
    while not end.wait(1 / rate) and (not limit or number < limit):
        number += 1
        log.info("order %d for customer card=4111111111111111", number)
        if number % 10 == 0:
            log.info("GET /healthz 200")
    if end.is_set():
        # What matters most is often what is written last.
        log.info("closed after order %d", number)


if __name__ == "__main__":
    main()
