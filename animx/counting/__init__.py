"""What a network would launch on a GPU, counted without one: operators, FLOPs, bytes (`animx bench count`).

`costs` knows what an operator costs, `log` listens, `stacks` builds the networks as fakes and runs them, `released` is
the operator sequence of the released code, and `report` makes the tables.
"""
