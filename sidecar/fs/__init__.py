"""Layer 2: the file system. Plain blocking functions that know no event loop.

Read: `openat` opens and reads files without leaving a volume, `open_file` keeps large files open,
`private_file` copies them to where nobody else can change them,
`xattrs` reads and writes the extended attribute of a file, `mounts` finds the mount and file system of a path, `links` resolves links, `leases` checks whether a file is open.

Write: `atomic` writes single files, and is the only module that renames and syncs; `inode_reuse` reuses expired files;
`dirs` creates and removes directories; `atomic_writer` writes sets of files in the layout of kubelet,
with the names of `layout`, and `visible_links` activates them. `flock` locks a directory for one writer at a time
and removes leftovers of killed writers; `libc` calls what Python has no function for; `permissions` handles access rights in directories with several users;
`oserrors` explains errors and their remedies.

Watch: `notify/` reports what may have changed.
Higher layers call these functions in a thread, one unit of work per call.
"""
