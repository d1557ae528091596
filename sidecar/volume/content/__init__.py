"""Read what a volume holds, without ever mixing two contents.

`snapshot` is what was read, an immutable mapping of names to bytes, and `scan_result` how far one scan can be trusted.
`payload` is what is to be published, and `local_file` reads a file of the caller.
`filters` and `listing` say which names count; `loader` reads them, and `read_state` is what it has read so far.
"""
