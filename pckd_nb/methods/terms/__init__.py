"""Loss terms of other distillation methods, as functions of tensors, and the small networks that are trained for them.

The classes in `methods.baselines` combine them with weights. Every function is compared with numbers that the authors'
code computed, see tests/test_reference_methods.py.
"""
