"""What `sidecar doctor` looks at.

`course` says in which order; each of the others answers one question with `findings`:
`place` where the path leads, `publishing` what a writer needs, `owners` what other users of the volume stand in the way of,
`reading` what a reader finds,
`noticing` whether changes are seen.
"""
