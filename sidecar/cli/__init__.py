"""Layer 6: the command line.

`main` finds the command and says in one line what went wrong. `commands/` has one module a command, `impl/` what they do,
and `doctor/` what `sidecar doctor` examines.
Commands share `options`, and `param_types`; `envvars` are the options' names in the environment,
`escape` makes names of others harmless to print, and `lazy_imports` imports servers without a client.

A command's module imports little; what does the work is imported when the command is called,
so that `sidecar check`, which a kubelet may start every few seconds, does not pay for a web server.
"""
