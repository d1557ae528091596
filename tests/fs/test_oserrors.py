"""What the disk says, in words that say what to change."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sidecar import _errors
from sidecar.fs import oserrors


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_of_its_own(number: int) -> None:
    """It is answered with 507, and it is an `OSError` for code that knows nothing of us."""
    publishing = oserrors.map_publish_errors("publish /shared/config")
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
    publishing = oserrors.map_publish_errors("publish /shared/config")
    with pytest.raises(_errors.VolumeUnavailable) as caught, publishing:
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith("cannot publish /shared/config: ")
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize(("variable", "secrets"), [(True, False), (False, True), (False, False)])
def test_fs_group_is_a_remedy_in_a_pod_alone(
    variable: bool, secrets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Pod has the variable of the API's Service or the token that kubelet mounts; elsewhere chgrp and chmod help."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if variable:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(oserrors, "_POD_SECRETS", str(tmp_path if secrets else tmp_path / "none"))
    said = oserrors.hint(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    assert ("fsGroup" in said) == (variable or secrets)
    assert ("chgrp" in said) == (not (variable or secrets))
