"""SlowMo (slow momentum, arXiv 1910.00643) on Horovod.

Import the adapter of your framework in place of Horovod's module::

    import slowmo_hvd.torch as hvd
"""

__version__ = "0.1.0"
