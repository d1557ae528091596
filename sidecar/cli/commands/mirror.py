"""`sidecar mirror`: what an engine elsewhere has becomes files on the volume."""

from __future__ import annotations

from dataclasses import asdict

import click

from sidecar.cli import action_options, declare, lazy_imports, options, param_types


@declare.command("mirror", cls=action_options.ActionCommand)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@options.path("Directory that gets the files of all sources as one set.")
@options.gating
@options.keeping
@declare.option(
    "--once",
    is_flag=True,
    help="Exit with 0 once the present state of every source is published: for init containers.",
)
@declare.option(
    "--or-last-good",
    is_flag=True,
    help="With --once: accept after --timeout what is on the volume already.",
)
@declare.option(
    "--timeout",
    type=param_types.positive_seconds,
    help="With --once: maximum seconds; then exit with 1. Without it: as long as it takes.",
)
@declare.option(
    "--shrink-limit",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Hold a state with less than this share of the published files of its source.",
)
@declare.option(
    "--allow-shrink",
    is_flag=True,
    help="Publish such a state, or an empty one, after it was read twice.",
)
@declare.option(
    "--allow-rewind",
    is_flag=True,
    help="Publish a state that is older than the published one (a restored backup), after it was read twice.",
)
@declare.option(
    "--stale-after",
    type=param_types.positive_seconds,
    default=60.0,
    help="Tell readers that the content is stale when a source has not answered for so many seconds.",
)
@action_options.acting(timeout="--action-timeout")
@declare.option(
    "--initial/--no-initial",
    default=True,
    help="Run the actions for the first complete set, too (the default).",
)
@options.probes
@options.logging()
def command(
    *,
    sources: tuple[str, ...],
    path: str,
    gating: options.ValidationOptions,
    keeping: options.StorageOptions,
    once: bool,
    or_last_good: bool,
    timeout: float | None,
    shrink_limit: float,
    allow_shrink: bool,
    allow_rewind: bool,
    stale_after: float,
    actions: action_options.Actions,
    initial: bool,
    host: str,
    port: int | None,
) -> int:
    """Publish what each SOURCE has to the directory at PATH, as one set, and follow it.

    \b
    kube://NAMESPACE/configmaps+secrets?labelSelector=…    ConfigMaps and Secrets
    git+https://host/REPO.git?ref=main              the files of a branch, a tag or a commit
    https://host/FILE or https://host/SET.tar.gz    a file, or the files of an archive
    etcd+https://host:2379/PREFIX/                  the keys below a prefix; so does consul+https
    redis://host:6379/DB/KEY                        the fields of a hash; rediss with TLS
    nats://host:4222/BUCKET/PREFIX                  the keys of a bucket; nats+tls with TLS
    mqtt://host:1883/PREFIX/                        the retained messages below a prefix; mqtts with TLS
    s3://BUCKET/PREFIX#manifest=manifest.json       the objects of a manifest, or all; so do gs and az
    vault+https://host:8200/MOUNT/PATH              the keys of a secret
    sidecar+https://host:8081/                      the files of another reader
    Options of a source follow a #: #into=DIR&token_file=FILE&ca_file=FILE&timeout=SECONDS

    While a source is away its files stay. A state that is empty, has lost most of its files, or is older
    than the published one is held, until --allow-shrink or --allow-rewind publishes it.
    /readyz says yes once a set is published; an absent source fails no probe.

    --webhook, --exec, --process and --pid-file do for each version what `sidecar reload` does, in this process.
    With --once they run once everything is published.

    It runs until SIGTERM, and exits with 0.
    """  # noqa: D301 (click's mark for a paragraph that is not to be wrapped)
    if (or_last_good or timeout is not None) and not once:
        raise click.UsageError("--or-last-good and --timeout are of no use without --once")
    if not initial and (once or not actions.chosen):
        raise click.UsageError("--no-initial needs an action, and contradicts --once")
    with lazy_imports.server_alone():
        from sidecar.cli.impl import mirror

        return mirror.run(
            path,
            sources,
            volume={
                "gate": gating.gate(),
                "max_size": gating.max_size,
                "verify_key": gating.verify_key,
                **asdict(keeping),
            },
            once=once,
            or_last_good=or_last_good,
            timeout=timeout,
            actions=actions,
            initial=initial,
            host=host,
            port=port,
            shrink_limit=shrink_limit,
            allow_shrink=allow_shrink,
            allow_rewind=allow_rewind,
            stale_after=stale_after,
        )
