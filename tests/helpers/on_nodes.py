"""python -m tests.helpers.on_nodes MODULE ARGUMENTS...: each rank on a node of its own, by the variables of Slurm."""

import os
import runpy
import sys

if __name__ == "__main__":
    module, *arguments = sys.argv[1:]
    os.environ |= {"SLURMD_NODENAME": f"node{os.environ['RANK']}", "LOCAL_RANK": "0"}
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
