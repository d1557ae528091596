"""Where log lines go.

`base` is what every sink promises; `addresses` makes sinks from `loki+https://…`.
`stdout` and `file` write what `output` makes of lines; `deadletter` is the file for lines that are refused.
`ndjson`, `loki`, `elasticsearch` and `otlp` share the `delivery` by HTTP: `destination` says where to and as whom,
`connector` keeps the connections, `compression` how small, `verdicts` what an answer means, `texts` what a record says, and `schemas` in which names.
"""
