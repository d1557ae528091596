"""From patterns to blocks of whole lines, through every rotation, with offsets that survive a restart.

`tail` is the source. `discovery` finds the files, `dir_watch` says which were written, `opener` opens them, `log_once` says once which it cannot.
`rotation` knows by `fingerprint` which file holds which content, with `classify` for unknown files and `relocate` for lost ones;
`registry` lists the streams, `close_policy` lets them go, `deletion` removes delivered files.
A `file_reader` reads one content, a plain file (`file_content`) or a compressed one (`archives`), cut into lines by `framing`.
`partial_lines` joins what a container runtime has cut, `stack_traces` what belongs to one trace.
`ack_window` knows what was acknowledged, and `checkpoint` saves it.
"""
