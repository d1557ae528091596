"""Read the content of a volume without mixing two contents.

`snapshot` is the result, an immutable mapping of names to bytes; `scan_result` adds the reliability of one scan.
`payload` is content to publish, and `local_file` reads a local file to publish.
`filters` and `listing` select the names; `loader` reads the files, and `read_state` holds those read so far.
`metadata` is what was stored about its publication, `source_state` is what a publisher says of the source of a content.
"""
