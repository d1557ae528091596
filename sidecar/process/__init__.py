"""Layer 2: the process of a program. Nothing here knows the files of a volume.

`lifecycle` runs a program until one of the stop `signals`; `executor` runs blocking work in threads,
`memory` returns unused memory to the kernel, `nofile_limit` raises the limit of open files.
`health`, `metrics` and `logging` report the state of the program, `log_events` lists the names of what is logged; `tracing` makes spans, which `span_export` exports.
`prefork/` runs several worker processes, `helper_process` runs cancellable work in one,
and `parent_death` ends a process with its parent.
`process_table` lists the other processes.
`request_context` is the request that a change belongs to, `audit` the log of all attempts. `quantities` parses sizes and times, `config_types` the values of configurations, `tls_trust` decides which certificates a client accepts,
`http_endpoint` says where a client connects to and as whom, `retry` how long it waits between attempts, `secret_file` reads a secret,
`redaction` keeps secrets out of messages, and `arguments` validates arguments.
"""
