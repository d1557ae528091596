"""The engines that can be mirrored, each from an address with its scheme.

`factory` makes a source from an address. `git` follows a ref of a repository:
`git_refs` asks for it, `git_command` transfers what it names, and `git_logins` says as whom;
`kube` follows ConfigMaps and Secrets, and by `url_keys` what they only name, `web` a file or an archive on a web server, `reader` the files of a `sidecar read`;
`etcd` and `consul` follow a prefix, `redis` a key, `nats` a bucket, `mqtt` topics, `objects` those of a cloud's store, `vault` a secret.
"""
