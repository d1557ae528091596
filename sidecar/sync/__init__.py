"""The same API without an event loop: for Flask, Django, Celery, scripts, and threads.

    settings = sync.load("/shared/settings.json")        read once
    settings = sync.watch("/shared/settings.json")       kept up to date in the background: settings.snapshot
    sync.publish_file("/shared/report.txt", text)        one file, atomic and durable
    volume = sync.Volume("/shared")                      files, sets, history

Each function calls its namesake in `sidecar`, on one event loop per process that runs in its own thread.
All functions can be called from any thread, and block until they are done.
In a forked process (gunicorn --preload, Celery, multiprocessing) everything restarts automatically.

`background` runs the event loop, `watching` has `watch` and `load`, and `publishing` has `Volume` and `publish_file`.
"""

from sidecar.sync.publishing import Upload, Volume, publish_file
from sidecar.sync.watching import Watch, WatchGroup, load, watch

__all__ = ["Upload", "Volume", "Watch", "WatchGroup", "load", "publish_file", "watch"]
