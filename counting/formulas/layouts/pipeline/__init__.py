"""A pipeline by formula: the order of passes of each schedule, the messages between stages, the passes of a stage.

`order` has the schedules' rules, `messages` what is alive between stages and what is sent. Torch-free.
"""
