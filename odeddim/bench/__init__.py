"""Benchmarks of solvers on a model: one file per table or figure; `figures` draws."""
