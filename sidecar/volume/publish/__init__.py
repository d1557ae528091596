"""Publish: change what the disk holds, whole and durable.

`models` are the requests and results. `upload` receives a large content.
`group_commit` publishes what waits for one name at once; `store` does one blocking step at a time under the lock;
`single_files` and `file_sets` change the disk: `activation` switches a set on,
`replaced` archives what others had put there, `repair` mends the active set at a start.
`history` keeps earlier versions, `retention` bounds them, and `budget` bounds all that the directory takes.
"""
