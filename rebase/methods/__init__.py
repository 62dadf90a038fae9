"""The transfer methods, a folder each: parameters (torch-free) and maths. `rebase.methods()` lists them."""

from rebase._callable_package import make_callable

make_callable(__name__, "rebase.methods.params:describe")
