"""The benches. Each measures solvers on a model, and writes a table and its figures to a folder.

A bench takes a `Workbench`: the model, the machine, the folder, and the layout of the figures. The folder keeps every
measurement. The same call continues a bench that was stopped, and a table with one more solver measures only that
solver.
"""

from __future__ import annotations

from odeddim.bench.drawing import Layout as Layout
from odeddim.jobs.bench.consistency import consistency as consistency
from odeddim.jobs.bench.interpolation import interpolation as interpolation
from odeddim.jobs.bench.league import league as league
from odeddim.jobs.bench.quality import quality as quality
from odeddim.jobs.bench.reconstruction import reconstruction as reconstruction
from odeddim.jobs.bench.report import report as report
from odeddim.jobs.bench.timing import timing as timing
from odeddim.jobs.bench.work_precision import find as find
from odeddim.jobs.bench.work_precision import work_precision as work_precision
from odeddim.jobs.bench.workbench import Workbench as Workbench
