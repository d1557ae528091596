"""`sidecar sign`: sign a content, for those who verify it with --verify-key."""

from __future__ import annotations

import click

from sidecar import _errors
from sidecar.cli import declare, options, param_types


@declare.command("sign")
@click.argument("source", shell_complete=options.complete_path)
@declare.option(
    "--key",
    required=True,
    type=param_types.nonempty_path,
    metavar="FILE",
    help="Private key (PEM, ed25519), as `openssl genpkey -algorithm ed25519` writes it.",
)
@declare.option(
    "--name",
    metavar="NAME",
    help="Name under which the file is published, if it is not that of SOURCE.",
)
@options.logging(level="warning")
def command(*, source: str, key: str, name: str | None) -> int:
    """Sign SOURCE with an ed25519 key.

    \b
    SOURCE     effect
    file, -    prints the signature, for `publish --signature` and the header Sidecar-Signature
    directory  writes SHA256SUMS and SHA256SUMS.sig into it: a set that can be published, or
               mounted as a ConfigMap

    The same is done by `sha256sum` and `openssl pkeyutl -sign -rawin`; see docs/signing.md.
    """  # noqa: D301 (click's mark for a paragraph that is not to be wrapped)
    import os

    from sidecar.cli.impl import sign

    if os.path.isdir(source):
        if name is not None:
            raise _errors.ConfigError("--name is of no use with a directory")
        sign.sign_directory(source, key)
    else:
        click.echo(sign.sign_file(source, key, name))
    return 0
