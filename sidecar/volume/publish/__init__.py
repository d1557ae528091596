"""Publish: change the content on the disk, atomically and durably.

`models` has the request and result types. `upload` receives large content.
`group_commit` combines pending writes to one name; `store` runs one blocking operation at a time under the lock.
`single_files` and `file_sets` change the disk: `activation` activates a generation,
`replaced` archives content of other publishers, `repair` repairs the active set at the start of a writer.
`metadata_store` stores who published a content, and when, with the content.
`history` keeps old versions, `retention` limits them, and `budget` limits the disk space of the directory.
"""
