"""Layer 2: the file system. Plain blocking functions that know no event loop.

Read: `openat` opens and reads without ever leaving a volume, `open_file` keeps large files open,
`mounts` tells what the volume is, `links` where a link leads, `leases` whether anybody has a file open.

Write: `atomic` makes one file, and is the only module that renames and syncs; `inode_reuse` writes into a file that has left the history;
`dirs` makes directories and removes what is in them,
`atomic_writer` lays sets of files out as the kubelet does, under names that `layout` defines; `visible_links` activates them.
`flock` lets one writer in at a time, and removes what killed ones have left; `permissions` knows what users of one volume
may do to each other's names; `oserrors` says what to change when something is not possible.

Notice: `notify/` tells what may have changed.
Higher layers call these functions in a thread, one unit of work in one hop.
"""
