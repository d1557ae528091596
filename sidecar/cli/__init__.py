"""Floor 5: the command line. One module a command, each with a `command` in it.

These are `write`, `read`, `collect`, `publish`, `delete`, `wait`, `check`, `doctor` and `demo`.

`main` finds the command and says in one line what went wrong. Commands share `options`, and kinds of `values`;
`variables` are the options' names in the environment, and `words` make names of others harmless to show.

A command's module imports little; what does the work is imported when the command is called,
so that `sidecar check`, which a kubelet starts every few seconds, does not pay for a web server:
`serving` for `write` and `read` (`light` imports it without a client), `collecting`, `waiting`,
`source` for `publish`, `probe` for `check`, and `examination/` for `doctor`.
"""
