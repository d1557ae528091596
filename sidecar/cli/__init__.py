"""Floor 5: the command line. One module a command, each with a `command` in it.

A command's module imports little; what does the work is imported when the command is called,
so that `sidecar check`, which a kubelet starts every few seconds, does not pay for a web server.
"""
