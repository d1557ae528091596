"""Floor 2: the disk. Plain blocking functions that know no event loop.

`beneath` opens and reads without ever leaving a volume,
`atomic` is the only place that renames and syncs,
`generations` lays sets of files out as kubelet does,
`events` reports hints that something may have changed.
Higher floors call them in a thread, one unit of work in one hop.
"""
