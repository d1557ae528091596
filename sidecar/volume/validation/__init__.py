"""Validate a content before it is published. Nothing here knows a volume.

`gate` runs the validators: `syntax` (with `syntax_yaml`), `schema`, and a `command` of the user's.
`validator` and `command_process` run them in processes that can be ended.
"""
