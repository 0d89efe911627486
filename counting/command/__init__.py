"""The command line. Only this package names flags.

`flags` (the parser), `checks` (flags that belong together), `amounts` (typed numbers), `arguments` (from flags to the
library's arguments), `hints` (errors of the library with flag names), `main` (from flags to a report and an exit
status), `plan_file`, `output_file`, `start_up` (the process).
"""
