"""Floor 2: the disk. Plain blocking functions that know no event loop.

`beneath` opens and reads without ever leaving a volume, `pinned` holds large files open,
`atomic` is the only place that renames and syncs,
`generations` lays sets of files out as kubelet does,
`hints` says what a hint of a change is; `inotify` and `portable` give some, `events` chooses between them,
and a `bell` wakes who waits.
Higher floors call them in a thread, one unit of work in one hop.
"""
