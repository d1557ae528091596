"""Layer 2: a program and its process. Nothing here knows the files of a volume.

`lifecycle` runs a program from its start to one of the `signals`; `executor` runs what blocks in threads,
`memory` returns what is not needed to the kernel, `nofile_limit` raises the limit of open files.
`health`, `metrics` and `logging` say how the program is.
`prefork/` runs several processes that do the same work, `helper_process` one for work that must be endable,
and `parent_death` ends a process with the one that has started it.
`process_table` lists the other processes.
`quantities` reads sizes and times, `tls_trust` says whose certificate a client accepts, `redaction` keeps secrets out of messages,
`arguments` checks what public functions are given.
"""
