"""Validate a content before it is published. Nothing here knows a volume.

`gate` runs the validators: `syntax` (with `syntax_yaml`), `schema`, and a `command` of the user's.
`signatures` says what a key has signed, and `signature_filter` lets only that through to readers.
`validator` and `command_process` run them in processes that can be ended.
"""
