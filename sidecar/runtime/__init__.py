"""Floor 2: a program and its process. Nothing here knows the files of a volume.

`running` is its life, from the start to one of the `signals`; `threads` does what blocks, `memory` gives back what is not needed.
`health`, `metrics` and `logging` say how it is.
Of several processes, `workers` starts and replaces them, `siblings` is how they ask each other,
`totals` makes one of their metrics, `helpers` do what must be endable, `parent` ends them with the one that started them.
`units` reads sizes and times, `trust` says whose certificate a client accepts, `arguments` checks what public functions are given, `descriptors` raises a limit.
"""
