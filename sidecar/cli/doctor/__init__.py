"""What `sidecar doctor` examines.

`runner` says in which order; each of the others answers one question, and `report` is the form of the findings:
`path_checks` where the path leads, `write_checks` what a writer needs, `owner_checks` what other users of the volume can obstruct,
`read_checks` what a reader finds, `watch_checks` whether changes are noticed.
"""
