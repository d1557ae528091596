"""The checks of `sidecar doctor`.

`runner` defines their order, and `report` the format of the findings:
`path_checks` resolve the path, `write_checks` test what a writer needs, `owner_checks` find what other users of the volume can obstruct,
`read_checks` test what a reader needs, `watch_checks` whether changes are detected.
"""
