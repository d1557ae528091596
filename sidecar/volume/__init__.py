"""Floor 3: a volume that containers share, as content with versions.

`snapshot` is what was read, `gate` decides what may be published, `history` keeps what was,
`volume` publishes, `watch` follows. Nothing here knows HTTP or logs.
"""
