"""The applications, and the parts that a user's own application may use.

`reader`, `writer` and `files` are complete applications; `follow` keeps the newest content in the user's own;
`write_request` parses requests to the writer, `write_health` reports whether the volume accepts writes,
`confirm` asks the reader whether a content has arrived;
`json_body` encodes a content as JSON, and `api_descriptions` is `/openapi.json`;
`page/` is the page `/ui`.
"""
