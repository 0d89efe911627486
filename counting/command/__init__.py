"""The command line. Only this package names flags.

`flags` (the parser, and which flag sets which argument of the library), `help` (examples and lists of names), `checks`
(flags that belong together), `plan_file` (flags from a file), `amounts` (typed numbers), `layouts` (the axes of a
layout as typed), `arguments` (from flags to the library's arguments), `lengths` (the default sequence length of several
models, and its warning), `hints` (errors of the library with flag names), `jobs`
(what a command does: results, and the files beside them), `main` (from flags to a report and an exit status),
`calibrate` (a sub-command), `progress`, `output_file`, `start_up` (the process), `missing` (packages that are not
installed).
"""
