"""The applications, and what a user's own application may take from them.

`reader`, `writer` and `files` are whole ones; `follow` keeps the content at hand in one of the user's;
`ops` are the routes of probes and metrics, and `probes` the same for any server.
`write_request` reads what a writer is sent, `write_health` knows whether the volume takes it, `confirm` asks the reader whether it has arrived;
`json_body` is a content as JSON, and `api_descriptions` what `/openapi.json` answers.
"""
