"""How the manual is built, `sphinx-build -W docs build/html`: notebooks are run here, other examples by tests/docs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the notebooks' kernels inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import odeddim

project = "odeddim"
author = "the authors of odeddim"
release = version = odeddim.__version__
copyright = "the authors of odeddim, MIT licence"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx_click",
    "docstrings",
    "solver_table",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"odeddim {release}"
html_static_path = ["static"]
html_css_files = ["odeddim.css"]
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
nb_execution_mode = "cache"
nb_execution_in_temp = True  # what they write does not stay beside them
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_merge_streams = True

smartquotes = False  # "zero" and --solver are code
default_role = "py:obj"  # `solve` in a docstring: a link where that is on a page, code otherwise
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80  # a longer signature has one argument a line
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source", ("Attributes", "params_style")]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

linkcheck_anchors = False
