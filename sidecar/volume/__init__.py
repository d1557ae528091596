"""Layer 3: a volume that containers share, as content with versions. Nothing here knows HTTP or logs.

`volume` is the class that users publish with. `content/` reads the disk, for both who publishes and who watches;
`validation/` decides what may be published; `publish/` changes the disk; `watch/` follows it.
`publish/` and `watch/` do not see each other. `change_log` writes one log line for each change, made or seen.
"""
