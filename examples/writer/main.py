"""Keep what comes as `?content=` in a file, for the containers that share it."""

import os

import sidecar

path = os.environ.get("CONFIG_FILE", "/tmp/gin/config")
port = int(os.environ.get("PORT", "8080"))
app = sidecar.writer_app(path)

if __name__ == "__main__":
    sidecar.run(sidecar.serve(app, port=port))
