"""The same without an event loop: for Flask, Django, Celery, scripts, and threads of your own.

    settings = sync.load("/shared/settings.json")        once, as it is now
    settings = sync.watch("/shared/settings.json")       kept up to date in the background: settings.snapshot
    sync.publish_file("/shared/report.txt", text)        one file, whole and durable
    volume = sync.Volume("/shared")                      files, sets, history

Each of these does what its namesake in `sidecar` does, by that: one event loop of this process, in a thread of its own.
Everything may be called from any thread, and blocks until it is done.
In a process that is forked (gunicorn --preload, Celery, multiprocessing) all of it begins anew by itself.

Inside, `background` is that loop, `watching` has `watch` and `load`, and `publishing` has `Volume` and `publish_file`.
"""

from sidecar.sync.publishing import Upload, Volume, publish_file
from sidecar.sync.watching import Watch, WatchGroup, load, watch

__all__ = ["Upload", "Volume", "Watch", "WatchGroup", "load", "publish_file", "watch"]
