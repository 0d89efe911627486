"""The command line; it alone names flags.

`flags` (what they are called and need), `amounts` (as typed), `arguments` (flags to the library's arguments), `hints`
(an argument's error in flags), `main` (results to report, exit statuses), `output_file`, `start_up` (of the process).
"""
