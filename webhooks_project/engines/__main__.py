"""`python -m webhooks_project.engines DIRECTORY REPORT_FD [--no-namespaces]`: a guardian.

Started by `Cluster.ensure()` and not meant to be typed. It leaves its parent,
so that it outlives whoever was the first to need an engine.
"""

import os
import sys

from webhooks_project.engines.guardian import main

if os.fork():
    os._exit(0)
os.setsid()
main(sys.argv[1], int(sys.argv[2]), namespaces="--no-namespaces" not in sys.argv[3:])
