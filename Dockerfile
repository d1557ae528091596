# One image for all roles: `write`, `read`, `collect`, `reload`, `mirror`, `publish`, `delete`, `wait`, `check`, `doctor`.
# It has no `git`: for `mirror git+…` install that in an image made from this one.
# Works as any user, with a read-only root and without capabilities; writes nowhere but to the volume it is given.
#
#     make image                                     # or: podman build -t localhost/sidecar:0.2.0 .
#     make image BASE=registry.example/python:3.13   # any base with Python 3.11 or newer as `python3`, and venv
ARG BASE=docker.io/library/python:3.13.9-slim-bookworm

FROM ${BASE} AS build
# Extras that need more: `sign` for --verify-key. `make image EXTRAS=sign`
ARG EXTRAS=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/sidecar
COPY image/*.txt /src/image/
RUN /build/bin/pip install --quiet --require-hashes -r /src/image/build.txt \
 && /build/bin/pip --python /opt/sidecar/bin/python3 install --quiet --require-hashes --only-binary=:all: -r /src/image/requirements.txt \
 && for extra in ${EXTRAS}; do /build/bin/pip --python /opt/sidecar/bin/python3 install --quiet --require-hashes --only-binary=:all: -r "/src/image/$extra.txt" || exit 1; done
COPY pyproject.toml hatch_build.py README.md LICENSE /src/
COPY sidecar /src/sidecar
RUN /build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheel /src \
 && /build/bin/pip --python /opt/sidecar/bin/python3 install --quiet --no-deps --no-index /wheel/*.whl

FROM ${BASE}
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sidecar" \
      org.opencontainers.image.description="Publish, watch and serve the files that the containers of a Pod share" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/sidecar /opt/sidecar
# At run time nothing can be compiled (read-only root), so what is imported is compiled here: it halves the start.
# Nothing can be installed either: a base may have a pip of its own.
RUN /opt/sidecar/bin/python3 -c "import sidecar.cli.main, sidecar.cli.commands.check, sidecar.http.apps.reader, sidecar.http.apps.writer, sidecar.http.server.serve, sidecar.cli.impl.collect, sidecar.logs.sinks.http, sidecar.logs.sinks.stdout, jsonschema, yaml" \
 && rm -rf /usr/share/python-wheels /usr/local/bin/pip* /usr/lib/python3/dist-packages/pip* \
        "$(python3 -c 'import ensurepip, os; print(os.path.dirname(ensurepip.__file__))')" \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/pip*
ENV PATH=/opt/sidecar/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /
ENTRYPOINT ["sidecar"]
CMD ["--help"]
