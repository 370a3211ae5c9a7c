"""horovodrun as the suite starts it: ``python horovodrun.py -np 2 python script.py``.

It takes for granted that Horovod was built with Gloo. horovodrun itself finds out by importing a
framework and Horovod for it in a process of its own, each time.
"""

from horovod.runner import launch

if __name__ == "__main__":
    launch.gloo_built = lambda verbose=False: True
    launch.run_commandline()
