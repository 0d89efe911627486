"""The ranks of a pipeline, measured: torch's own schedules for the order, and the modules of stages for what passes do.

`schedules` runs torch's schedules over empty stages, for the order of passes and the messages between stages; `stages`
runs the passes of a stage on its modules, in the order of `plans`; `profile` puts both together.
"""
