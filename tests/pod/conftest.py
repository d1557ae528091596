"""One image for all tests of Pods, and a podman of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pod import podman, tools


@pytest.fixture(scope="session")
def alone() -> Iterator[None]:
    with podman.alone():
        yield


@pytest.fixture(scope="session")
def image(alone: None) -> str:
    """The image, built from this tree on a base of the distribution's packages."""
    return podman.build(podman.IMAGE, tools.ROOT, BASE=podman.base())


@pytest.fixture(scope="session")
def readers_image(image: str) -> str:
    """The image of a user: examples/reader on top of ours."""
    return podman.build(
        "localhost/sidecar-reader:latest", tools.ROOT / "examples" / "reader", BASE=image
    )


@pytest.fixture(scope="session")
def shops_image(alone: None) -> str:
    """The application of examples/log-collection, which knows nothing of ours."""
    return podman.build(
        "localhost/sidecar-shop:latest",
        tools.ROOT / "examples" / "log-collection",
        BASE=podman.base(),
    )


@pytest.fixture(scope="session")
def writers_image(image: str) -> str:
    """The same of examples/writer."""
    return podman.build(
        "localhost/sidecar-writer:latest", tools.ROOT / "examples" / "writer", BASE=image
    )
