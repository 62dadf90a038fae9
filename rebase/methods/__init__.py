"""Transfer methods, a folder each: torch-free parameters and the algorithm. `rebase.methods()` lists them."""

from rebase._callable_package import make_callable

make_callable(__name__, "rebase.methods.params:describe")
