"""The file input: from patterns to blocks of complete lines, through rotation, with offsets that survive a restart.

`tail` is the source, which one collection uses at a time (`reservation`). `discovery` finds files, `dir_watch` reports which were written, `opener` opens them,
and `log_once` logs each failure once.
`rotation` tracks by `fingerprint` which file holds which stream; `classify` handles new files, `relocate` lost ones.
`registry` lists the streams, `close_policy` decides what is closed, `deletion` deletes delivered files.
`block_reader` lets the streams take turns. `file_reader` reads one stream, a plain file (`file_content`) or a compressed one (`archives`);
`framing` splits lines, `block_framing` makes blocks of them.
`partial_lines` joins lines split by a container runtime, `stack_traces` the lines of a stack trace.
`ack_window` tracks acknowledgements, and `checkpoint` saves them.
"""
