"""Layer 6: the command line.

`main` finds the command and reports errors in one line. `commands/` has one module for each command, `impl/` what they do,
and `doctor/` the checks of `sidecar doctor`.
`declare` turns options into flags and environment variables, `options` has the groups of options that commands share,
`action_options` those of what is done for each version,
and `param_types` the types of their values; `envvars` defines the names of the variables,
`escape` makes foreign names safe to print, and `lazy_imports` imports servers without the HTTP client.

A command's module imports little. Its work is imported when the command is called,
so `sidecar check`, which the kubelet may start every few seconds, does not load a web server.
"""
