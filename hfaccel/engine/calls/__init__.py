"""Which calls the kernels may compute, and whether the module is still what the trial saw."""
