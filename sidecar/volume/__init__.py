"""Floor 3: a volume that containers share, as content with versions. Nothing here knows HTTP or logs.

Publish: `volume` is what users hold, `upload` receives what is large, `local_file` reads a file of the caller, and `terms` are the words of what is asked and answered.
`gate` decides what may be published, by `syntax` (`syntax_yaml`), `schema` and a command (`check`),
in processes that can be ended (`validator`, `check_process`);
`commit` groups what waits, `store` does one step at a time, `loose` and `sets` change the disk (`activation` puts a set in force, `replaced` keeps what of others lay there),
`history` keeps what was.
`repair` mends a set in force at a start, `change_log` says each change in one line, also one that a watch has seen.
`retention` bounds the history as a whole, and `budget` all that the directory takes.

Read: `snapshot` is what was read, and `sighting` how far one look can be trusted;
`filters` and `listing` say which names count, `loading` reads them, `reading` is what it has read.

Follow: `watch` is what users hold, `watch_group` several as one, `watch_options` what all of these take;
`watch_run` is one run of it, whose thread is a `lookout`, which has an `eye` to look and a `judge` to decide, by `evidence`.
`changes` is what events have told of, `coverage` watches the directories that a listing goes through.
"""
