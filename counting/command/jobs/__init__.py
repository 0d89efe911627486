"""What a command does with its flags: from typed flags to results, and the files beside them.

`results` (all results of one command), `analyses` (of each model), `money` (budget, comparison, design), `published`
(published figures), `figures` (which kinds a job draws, to which files), `outputs` (all files that are written).
Modules that few commands need are imported on demand.
"""
