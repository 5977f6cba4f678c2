"""What a model answers before and after its compression, measured by running both.

The rooms around it read weights; only this one runs models. It imports torch and transformers when
it is first used, in a process that a job has for itself, inside the sandbox.
"""
