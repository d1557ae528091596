"""Floor 2: the disk. Plain blocking functions that know no event loop.

Read: `beneath` opens and reads without ever leaving a volume, `pinned` holds large files open,
`mounts` tells what the volume is, `links` where a link leads, `leases` whether anybody has a file open.

Write: `atomic` makes one file, and is the only place that renames and syncs; `reuse` takes one that has left the history;
`trees` makes directories and removes what is in them,
`generations` lays sets of files out as kubelet does, under names that `naming` knows; `visible` puts them in force by links.
`locks` lets one writer in at a time, and clears away after killed ones; `permissions` knows what users of one volume
may do to each other's names; `failures` says what to change when it is not possible.

Notice: `hints` says what a hint of a change is; `inotify` and `portable` give some, `events` chooses between them,
and a `bell` wakes who waits.
Higher floors call them in a thread, one unit of work in one hop.
"""
