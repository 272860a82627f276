"""What the commands do, as functions from files to files. They can be stopped, and shared among processes.

Every job takes paths, and a `Machine` that says where it runs. A model is a name, a path, a VectorField, or a
`Subject`. A job that was stopped, even by a kill, goes on with the same call.
"""

from __future__ import annotations

from odeddim.jobs import bench as bench
from odeddim.jobs.bridge import bridge as bridge
from odeddim.jobs.combining import Drawing as Drawing
from odeddim.jobs.decode import decode as decode
from odeddim.jobs.density import Densities as Densities
from odeddim.jobs.density import density as density
from odeddim.jobs.diagnose import diagnose as diagnose
from odeddim.jobs.edit import Description as Description
from odeddim.jobs.edit import Redone as Redone
from odeddim.jobs.edit import edit as edit
from odeddim.jobs.encode import encode as encode
from odeddim.jobs.explore import explore as explore
from odeddim.jobs.fit import fit as fit
from odeddim.jobs.fitted_nodes import Found as Found
from odeddim.jobs.inspect import inspect as inspect
from odeddim.jobs.interpolate import interpolate as interpolate
from odeddim.jobs.machine import Machine as Machine
from odeddim.jobs.merge import merge as merge
from odeddim.jobs.moments import moments as moments
from odeddim.jobs.neighbours import neighbours as neighbours
from odeddim.jobs.recording import Recording as Recording
from odeddim.jobs.sample import sample as sample
from odeddim.jobs.score import Calibration as Calibration
from odeddim.jobs.score import Scored as Scored
from odeddim.jobs.score import score as score
from odeddim.jobs.shift import Direction as Direction
from odeddim.jobs.shift import shift as shift
from odeddim.jobs.subject import Subject as Subject
from odeddim.jobs.train import train as train
from odeddim.jobs.trajectory import trajectory as trajectory
from odeddim.jobs.verify import verify as verify
from odeddim.jobs.work import Outcome as Outcome
from odeddim.storage.animations import Animation as Animation
from odeddim.storage.outputs import Pictures as Pictures
