"""horovodrun, with settings for its ssh: ``python -m benchmarks.network.launcher SETTINGS ...``.

horovodrun can be told of a key and a port, and not of a file of settings. Also it takes for granted
that Horovod was built with Gloo, where horovodrun imports the frameworks to find out.
"""

import shlex
import sys

from horovod.runner import launch
from horovod.runner.util import remote

if __name__ == "__main__":
    settings = sys.argv.pop(1)
    remote.SSH_COMMAND_PREFIX += f" -F {shlex.quote(settings)}"
    launch.gloo_built = lambda verbose=False: True
    launch.run_commandline()
