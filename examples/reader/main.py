"""Answer with what is in a file, as it is now."""

import os

import sidecar

path = os.environ.get("CONFIG_FILE", "/tmp/gin/config")
port = int(os.environ.get("PORT", "8081"))
app = sidecar.reader_app(path, missing="ok")

if __name__ == "__main__":
    sidecar.run(sidecar.serve(app, port=port))
