"""What the disk says, in words that say what to change."""

from __future__ import annotations

import errno
import os

import pytest

from sidecar import _errors
from sidecar.disk import failures


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_of_its_own(number: int) -> None:
    """It is answered with 507, and it is an `OSError` for code that knows nothing of us."""
    publishing = failures.publishing("publish /shared/config")
    full = pytest.raises(_errors.VolumeFull, match="cannot publish /shared/config: ")
    with full as caught, publishing:
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number


@pytest.mark.parametrize(
    "name",
    [
        "EROFS",
        "EIO",
        "ESTALE",
        "EACCES",
        "EPERM",
        "EBUSY",
        "EXDEV",
        "EMFILE",
        "ENOENT",
        "ENOTDIR",
        "EISDIR",
        "EINVAL",
    ],
)
def test_every_other_error_makes_the_volume_unavailable(name: str) -> None:
    """And says in words what is wrong, without the number of the error."""
    number = getattr(errno, name)
    publishing = failures.publishing("publish /shared/config")
    with pytest.raises(_errors.VolumeUnavailable) as caught, publishing:
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith("cannot publish /shared/config: ")
    assert "Errno" not in str(caught.value)
