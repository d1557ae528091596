"""Floor 3: a volume that containers share, as content with versions.

`snapshot` is what was read, `gate` decides what may be published, `history` keeps what was,
`loose` and `sets` change the disk, `store` keeps writers apart, `commit` groups what waits;
`volume` publishes, `watch` follows. Nothing here knows HTTP or logs.
"""
