"""Teach a local model a task from examples: low-rank adapters (LoRA), trained on this machine.

::

    service  jobs: queue, resume    ─► job, process ─ spawns ─►  trainer  (a process of its own)
    data     examples: read, split                               learning    the loop
    journal  jobs and their events                               checkpoint  what survives a kill
                                                                 evaluation  score before, after

Nothing is imported here; MLX is imported in the trainer's process only.
"""
