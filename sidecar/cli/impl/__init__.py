"""What the commands do, imported when they are called.

`serve` is for `write` and `read`; `collect` and `wait` are for the commands of that name, `publish_source` for `publish` and `sign`, `sign` for that,
`http_probe` for `check`, `mirror` and `reload` for those; `probe_server` answers probes for commands that serve nothing else.
`collect_page` is the page of `collect`, and `file_positions` says for it, and for `--status`, how far each file is delivered.
"""
