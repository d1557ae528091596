"""Where log lines go.

`base` is what every sink promises; `factory` makes sinks from addresses such as `loki+https://…`.
`stdout` and `file` write what `line_output` makes of lines; `deadletter` is the file for lines that are refused.
`ndjson`, `loki`, `elasticsearch` and `otlp` share `http`: `process.http_endpoint` says where to and as whom,
`connector` keeps the connections, `compression` how small, `responses` what an answer means, `render` what a record says, and `schemas` in which names.
"""
