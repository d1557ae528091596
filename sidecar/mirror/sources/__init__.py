"""The engines that can be mirrored, each from an address with its scheme.

`factory` makes a source from an address. `git` follows a ref of a repository, which `git_command` transfers;
`kube` follows ConfigMaps and Secrets, `web` a file or an archive on a web server, `reader` the files of a `sidecar read`;
`etcd` and `consul` follow a prefix, `redis` a key, `vault` a secret.
"""
