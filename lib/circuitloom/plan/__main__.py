"""Reads a study's config as JSON and writes the seconds of each stage on this machine as JSON.

The workflow runs this in a process of its own, because measuring the machine imports torch.
"""

import json
import math
import sys

from ..config import load_study
from ..core.layout import Layout
from . import calibrate, plan

study = load_study(json.load(sys.stdin))
costs = plan(study, calibrate(Layout.of(study.name).root))
json.dump({cost.stage: cost.seconds for cost in costs if math.isfinite(cost.seconds)}, sys.stdout)
